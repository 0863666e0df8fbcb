#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace sluice::tensor {
namespace {

uint16_t half_bits(float value) {  // of values that binary16 has exactly
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if (f16_to_float(static_cast<uint16_t>(bits)) == value) return static_cast<uint16_t>(bits);
  }
  ADD_FAILURE() << value << " has no half-precision form";
  return 0;
}

TEST(DTypeTest, F16WidensEveryBitPattern) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
    double want =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25);
    if (exponent == 31) want = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
    if ((bits & 0x8000) != 0) want = -want;
    const float got = f16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(got), want) << bits;
      ASSERT_EQ(std::signbit(got), std::signbit(want)) << bits;
    }
  }
}

TEST(DTypeTest, Bf16RoundsToNearestWithTiesToEven) {
  const auto rounded = [](uint32_t bits) { return float_to_bf16(std::bit_cast<float>(bits)); };
  EXPECT_EQ(rounded(0x3f800000), 0x3f80);  // 1
  EXPECT_EQ(rounded(0x3f807fff), 0x3f80);  // below the middle
  EXPECT_EQ(rounded(0x3f808000), 0x3f80);  // the middle, even below
  EXPECT_EQ(rounded(0x3f808001), 0x3f81);  // above the middle
  EXPECT_EQ(rounded(0x3f818000), 0x3f82);  // the middle, even above
  EXPECT_EQ(rounded(0xbf818000), 0xbf82);  // likewise below zero
  EXPECT_EQ(rounded(0x7f7fffff), 0x7f80);  // the largest float has no finite neighbour above
  EXPECT_EQ(rounded(0x7f800000), 0x7f80);
  EXPECT_EQ(rounded(0x00000001), 0x0000);
  EXPECT_EQ(rounded(0x80000000), 0x8000);
  EXPECT_TRUE(std::isnan(bf16_to_float(rounded(0x7f800001)))) << "a NaN whose payload is cut off is still one";
  EXPECT_TRUE(std::isnan(bf16_to_float(rounded(0xffffffff))));
}

TEST(DTypeTest, Bf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(float_to_bf16(value), bits);
  }
}

// Decoders that find one value from its index, where the real ones walk over blocks.
class Block {
 public:
  explicit Block(const uint8_t* bytes) : bytes_(bytes) {}
  float half(int at) const {
    uint16_t bits;
    std::memcpy(&bits, bytes_ + at, 2);
    return f16_to_float(bits);
  }
  int byte(int at) const { return bytes_[at]; }
  int signed_byte(int at) const { return static_cast<int8_t>(bytes_[at]); }
  int nibble(int at, bool high) const { return high ? bytes_[at] >> 4 : bytes_[at] & 15; }

 private:
  const uint8_t* bytes_;
};

double value_at(DType dtype, const Block& b, int i) {
  switch (dtype) {
    case DType::kQ8_0:
      return static_cast<double>(b.half(0)) * b.signed_byte(2 + i);
    case DType::kQ4_0:
      return static_cast<double>(b.half(0)) * (b.nibble(2 + i % 16, i >= 16) - 8);
    case DType::kQ4_1:
      return static_cast<double>(b.half(0)) * b.nibble(4 + i % 16, i >= 16) + b.half(2);
    case DType::kQ4_K: {
      const int group = i / 32;
      const int quant = b.nibble(16 + i / 64 * 32 + i % 32, i % 64 >= 32);
      const int scale = group < 4 ? b.byte(4 + group) & 63 : b.nibble(8 + group, false) | (b.byte(group) >> 6) << 4;
      const int minimum =
          group < 4 ? b.byte(8 + group) & 63 : b.nibble(8 + group, true) | (b.byte(4 + group) >> 6) << 4;
      return static_cast<double>(b.half(0)) * scale * quant - static_cast<double>(b.half(2)) * minimum;
    }
    case DType::kQ6_K: {
      const int half = i / 128, quarter = i % 128 / 32, column = i % 32;
      const int low = b.nibble(64 * half + 32 * (quarter % 2) + column, quarter >= 2);
      const int high = b.byte(128 + 32 * half + column) >> 2 * quarter & 3;
      return static_cast<double>(b.half(208)) * b.signed_byte(192 + i / 16) * ((high << 4 | low) - 32);
    }
    default:
      return 0;
  }
}

struct Blocks {
  std::vector<uint8_t> bytes;
  std::vector<uint32_t> floats;
};

class GgufBlocksTest : public ::testing::TestWithParam<DType> {
 protected:
  // Random blocks and their values by the `gguf` package (tests/tools/make_gguf_blocks.py).
  static Blocks fixture(DType dtype) {
    std::ifstream file(std::string(SLUICE_FIXTURES_DIR) + "/gguf-blocks/blocks.json");
    const auto json = nlohmann::json::parse(file).at(std::string(to_string(dtype)));
    Blocks blocks{.floats = json.at("floats")};
    const auto hex = json.at("bytes").get<std::string>();
    for (size_t i = 0; i < hex.size(); i += 2) {
      blocks.bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return blocks;
  }
};

TEST_P(GgufBlocksTest, WidenAsTheGgufPackageDoes) {
  const Blocks blocks = fixture(GetParam());
  ASSERT_EQ(bytes_of(GetParam(), blocks.floats.size()), blocks.bytes.size());
  std::vector<uint8_t> unaligned(blocks.bytes.size() + 1);
  std::copy(blocks.bytes.begin(), blocks.bytes.end(), unaligned.begin() + 1);
  std::vector<float> got(blocks.floats.size());
  to_float(GetParam(), unaligned.data() + 1, got.size(), got.data());
  for (size_t i = 0; i < got.size(); ++i) {
    // Scale times whole number and one sum: the order of two roundings is free.
    const auto want = std::bit_cast<float>(blocks.floats[i]);
    EXPECT_NEAR(got[i], want, 4 * 0x1p-24 * std::max(1.0f, std::abs(want))) << i;
  }
}

class GgufQuantisedTest : public GgufBlocksTest {};

TEST_P(GgufQuantisedTest, WidenAsTheFormatIsWrittenDown) {
  const DType dtype = GetParam();
  const Blocks blocks = fixture(dtype);
  std::vector<float> got(blocks.floats.size());
  to_float(dtype, blocks.bytes.data(), got.size(), got.data());
  const auto elements = static_cast<int>(block_elements(dtype));
  for (size_t i = 0; i < got.size(); ++i) {
    const Block block(blocks.bytes.data() + i / block_elements(dtype) * block_bytes(dtype));
    const double want = value_at(dtype, block, static_cast<int>(i) % elements);
    EXPECT_NEAR(got[i], want, 4 * 0x1p-24 * std::max(1.0, std::abs(want))) << i;
  }
}

constexpr auto kName = [](const auto& info) { return std::string(to_string(info.param)); };
INSTANTIATE_TEST_SUITE_P(Plain, GgufBlocksTest, ::testing::Values(DType::kF16, DType::kBf16), kName);
INSTANTIATE_TEST_SUITE_P(Quantised, GgufBlocksTest,
                         ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K),
                         kName);
INSTANTIATE_TEST_SUITE_P(Types, GgufQuantisedTest,
                         ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K),
                         kName);

TEST(F8E4M3Test, EveryValueIsThatOfTheFormat) {
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const float got = f8_e4m3_to_float(static_cast<uint8_t>(bits));
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(got));
      continue;
    }
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    EXPECT_EQ(got, (bits & 0x80) != 0 ? -magnitude : magnitude) << bits;
    EXPECT_EQ(std::signbit(got), (bits & 0x80) != 0) << bits;
  }
  EXPECT_EQ(f8_e4m3_to_float(0x7e), 448);
}

TEST(F8E4M3Test, ValuesGoToTheNearestAndTiesToTheEvenOne) {
  for (int bits = 0; bits < 0x7f; ++bits) {
    const float value = f8_e4m3_to_float(static_cast<uint8_t>(bits));
    EXPECT_EQ(float_to_f8_e4m3(value), bits);
    EXPECT_EQ(float_to_f8_e4m3(-value), bits | 0x80);
    if (bits == 0x7e) break;
    const float next = f8_e4m3_to_float(static_cast<uint8_t>(bits + 1)), middle = (value + next) / 2;
    EXPECT_EQ(float_to_f8_e4m3(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(float_to_f8_e4m3(std::nextafter(middle, 0.0f)), bits);
    EXPECT_EQ(float_to_f8_e4m3(std::nextafter(middle, 500.0f)), bits + 1);
  }
  EXPECT_EQ(float_to_f8_e4m3(1e30f), 0x7e);
  EXPECT_EQ(float_to_f8_e4m3(std::nanf("")) & 0x7f, 0x7f);
}

TEST(GgufBlocksByHandTest, Q4_1HasLowNibblesFirst) {
  std::vector<uint8_t> block(20);
  const uint16_t scale = half_bits(0.5f), minimum = half_bits(-3);
  std::memcpy(block.data(), &scale, 2);
  std::memcpy(block.data() + 2, &minimum, 2);
  block[4] = 0xf1;  // values 0 and 16
  float values[32];
  to_float(DType::kQ4_1, block.data(), 32, values);
  EXPECT_EQ(values[0], 0.5f * 1 - 3);
  EXPECT_EQ(values[16], 0.5f * 15 - 3);
  EXPECT_EQ(values[1], -3);
}

TEST(GgufBlocksByHandTest, Q4_0IsCentredOnEight) {
  std::vector<uint8_t> block(18, 0x88);
  const uint16_t scale = half_bits(2);
  std::memcpy(block.data(), &scale, 2);
  block[2 + 3] = 0x70;  // values 3 and 19
  float values[32];
  to_float(DType::kQ4_0, block.data(), 32, values);
  EXPECT_EQ(values[3], -16);
  EXPECT_EQ(values[19], -2);
  EXPECT_EQ(values[4], 0);
}

TEST(GgufBlocksByHandTest, Q8_0IsSigned) {
  std::vector<uint8_t> block(34);
  const uint16_t scale = half_bits(0.25f);
  std::memcpy(block.data(), &scale, 2);
  block[2] = 0x80;
  block[33] = 0x7f;
  float values[32];
  to_float(DType::kQ8_0, block.data(), 32, values);
  EXPECT_EQ(values[0], -32);
  EXPECT_EQ(values[31], 31.75f);
}

}  // namespace
}  // namespace sluice::tensor
