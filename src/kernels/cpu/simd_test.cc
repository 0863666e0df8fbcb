#include "kernels/cpu/simd.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>

#include "base/rng.h"
#include "kernels/cpu/tile_products.h"
#include "kernels/kernel_fixture.h"

namespace sluice::kernels::cpu {
namespace {

TEST(Simd, RowsArePackedForBothProducts) {
  constexpr int64_t kWidth = 160, kRows = 32, kBlock = kRows * kPairColumns;  // the last block of columns is half full
  std::vector<std::vector<uint16_t>> rows(kPackRows, std::vector<uint16_t>(kWidth));
  std::array<const uint16_t*, kPackRows> pointers;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t k = 0; k < rows[r].size(); ++k) rows[r][k] = static_cast<uint16_t>(r << 8 | k);
    pointers[r] = rows[r].data();
  }
  for (const Simd* simd : runnable_simds()) {
    SCOPED_TRACE(simd->name);
    std::vector<uint16_t> over_values(kWidth * kPairColumns), over_rows(3 * kBlock);
    simd->pack_pairs(pointers.data(), kWidth, over_values.data(), over_rows.data(), kBlock, nullptr);
    for (int64_t r = 0; r < kPackRows; ++r) {
      for (int64_t k = 0; k < kWidth; ++k) {
        const uint16_t value = rows[static_cast<size_t>(r)][static_cast<size_t>(k)];
        ASSERT_EQ(over_values[static_cast<size_t>((k / 2 * kPairColumns + r) * 2 + k % 2)], value) << r << ", " << k;
        const int64_t at = k / kPairColumns * kBlock + (r / 2 * kPairColumns + k % kPairColumns) * 2 + r % 2;
        ASSERT_EQ(over_rows[static_cast<size_t>(at)], value) << r << ", " << k;
      }
    }
  }
}

TEST(Simd, ScoresOfRowsAreThoseOfEachQuery) {
  constexpr int64_t kWidth = 96, kApart = kWidth + 8, kStride = kScoreRows + 16;
  // Small whole numbers, whose sums are exact in any order.
  const auto value = [](int64_t row, int64_t k) { return static_cast<float>((5 * row + 3 * k + row * k) % 17) - 8; };
  std::vector<uint16_t> rows(kScoreRows * kApart), queries(kWidth * kPairColumns);
  for (int64_t r = 0; r < kScoreRows; ++r) {
    for (int64_t k = 0; k < kWidth; ++k) rows[static_cast<size_t>(r * kApart + k)] = tensor::float_to_bf16(value(r, k));
  }
  for (int64_t c = 0; c < kPairColumns; ++c) {
    for (int64_t k = 0; k < kWidth; ++k) {
      queries[static_cast<size_t>((k / 2 * kPairColumns + c) * 2 + k % 2)] = tensor::float_to_bf16(value(c + 100, k));
    }
  }
  for (const Simd* simd : runnable_simds()) {
    if (simd->score_rows == nullptr) continue;
    for (int64_t columns = kScoreColumns; columns <= kPairColumns; columns += kScoreColumns) {
      SCOPED_TRACE(fmt::format("{}, {} columns", simd->name, columns));
      std::vector<float> scores(kPairColumns * kStride, -1);
      const char* first = reinterpret_cast<const char*>(rows.data());
      const std::vector<const void*> next(kScoreRows, first);
      // Backwards too, as slots of a cache may lie.
      for (const int64_t step : {1, -1}) {
        simd->score_rows(step > 0 ? first : first + 2 * (kScoreRows - 1) * kApart, step * 2 * kApart, kWidth,
                         reinterpret_cast<const char*>(queries.data()), columns, scores.data(), kStride, next.data());
        for (int64_t c = 0; c < kPairColumns; ++c) {
          for (int64_t r = 0; r < kStride; ++r) {
            float want = -1;
            if (c < columns && r < kScoreRows) {
              want = 0;
              for (int64_t k = 0; k < kWidth; ++k) {
                want += value(step > 0 ? r : kScoreRows - 1 - r, k) * value(c + 100, k);
              }
            }
            ASSERT_EQ(scores[static_cast<size_t>(c * kStride + r)], want) << c << ", " << r;
          }
        }
      }
    }
  }
}

// A row has the sums that it has by itself, however many there are.
TEST(Simd, RoundedRowsHaveTheirSumsToTheBit) {
  constexpr int64_t kIn = 512, kRows = 50, kStride = kTileColumns + 8;
  Rng rng(3);
  const auto in = draw(rng, kRows * kIn, 2);
  for (const DType stored : {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K}) {
    const auto rows = draw_blocks(rng, stored, tensor::bytes_of(stored, kIn) * kTileColumns);
    std::vector<char> tile(tile_bytes(stored, kIn));
    pack_tile(stored, kIn, rows.data(), kTileColumns, tile.data());
    for (const Simd* simd : runnable_simds()) {
      RoundedRows rounded;
      rounded.resize(kRows, kIn);
      for (int64_t r = 0; r < kRows; ++r) rounded.round(*simd, in.data(), /*in_bf16=*/false, r);
      const auto sums = [&](int64_t first, int64_t count) {
        std::vector<float> out(kRows * kStride, 1);
        simd->tiles[tile_format(stored)].dot_rounded(
            tile.data(), kIn / kBlockValues, rounded[first], count,
            {.out = out.data() + first * kStride, .stride = kStride, .bias = nullptr, .accumulate = true});
        return out;
      };
      std::vector<float> alone(kRows * kStride, 1);
      for (int64_t r = 0; r < kRows; ++r) {
        const auto own = sums(r, 1);
        std::copy_n(own.begin() + r * kStride, kTileColumns, alone.begin() + r * kStride);
      }
      for (const int64_t count : {8, 15, 16, 17, 32, 37, 50}) {
        auto want = alone;
        std::fill(want.begin() + count * kStride, want.end(), 1);
        EXPECT_EQ(sums(0, count), want) << simd->name << ", " << tensor::to_string(stored) << ", rows " << count;
      }
    }
  }
}

class SimdPairs : public ::testing::TestWithParam<int64_t> {};

// Row counts that are taken in one group, in parts of the summed dimension, and as a whole.
TEST_P(SimdPairs, ProductsAreThoseOfEachRowByItself) {
  constexpr int64_t kRows = 150, kStride = kPairColumns + 16;
  const int64_t in = GetParam();
  std::vector<uint16_t> weights(static_cast<size_t>(in * kPairColumns)), x(static_cast<size_t>(kRows * in));
  // Small whole numbers, whose sums are exact in any order.
  const auto fill = [](std::vector<uint16_t>& values, size_t step) {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = tensor::float_to_bf16(static_cast<float>(i * step % 17) - 8);
    }
  };
  fill(weights, 5);
  fill(x, 7);
  std::vector<float> bias(kPairColumns), before(kRows * kStride);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i);
  for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<float>(i % 100);
  std::vector<float> products(kRows * kPairColumns);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kPairColumns; ++c) {
      for (int64_t k = 0; k < in; ++k) {
        products[static_cast<size_t>(r * kPairColumns + c)] +=
            tensor::bf16_to_float(x[static_cast<size_t>(r * in + k)]) *
            tensor::bf16_to_float(weights[static_cast<size_t>((k / 2 * kPairColumns + c) * 2 + k % 2)]);
      }
    }
  }
  const auto expect_products = [&](const Simd& simd, int64_t rows, int64_t columns, bool more) {
    SCOPED_TRACE(fmt::format("{}, rows {}, columns {}, more {}", simd.name, rows, columns, more));
    std::vector<float> out = before;
    for (int64_t c = 0; c < kPairColumns; c += columns) {
      simd.multiply_pairs(
          reinterpret_cast<const char*>(weights.data() + 2 * c), in, x.data(), in, rows, columns,
          {.out = out.data() + c, .stride = kStride, .bias = more ? bias.data() + c : nullptr, .accumulate = more});
    }
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kStride; ++c) {
        const auto at = static_cast<size_t>(r * kStride + c);
        float want = before[at];
        if (r < rows && c < kPairColumns) {
          want = products[static_cast<size_t>(r * kPairColumns + c)];
          if (more) want += before[at] + bias[static_cast<size_t>(c)];
        }
        ASSERT_EQ(out[at], want) << r << ", " << c;
      }
    }
  };
  for (const Simd* simd : runnable_simds()) {
    for (const int64_t rows : {1, 4, 6, 7, 16, 17, 24, 33, 64, 70, 69, 96, 149}) {
      for (const int64_t columns : {kPairColumns, kPairColumns / 2}) {
        for (const bool more : {false, true}) expect_products(*simd, rows, columns, more);
      }
    }
  }
}

// Less than a step of tiles, some of them and a rest, and parts that are neither the first nor the last, which is
// short.
INSTANTIATE_TEST_SUITE_P(Widths, SimdPairs, ::testing::Values(10, 32, 78, 1600, 1630));

TEST_P(SimdPairs, ASumDoesNotDependOnItsNeighbours) {
  constexpr int64_t kRows = 130;
  const int64_t in = GetParam();
  Rng rng(7);
  std::vector<uint16_t> weights(static_cast<size_t>(in * kPairColumns)), x(static_cast<size_t>(kRows * in));
  for (auto* values : {&weights, &x}) {
    for (uint16_t& value : *values) value = tensor::float_to_bf16(static_cast<float>(rng.uniform()) - 0.5f);
  }
  for (const Simd* simd : runnable_simds()) {
    SCOPED_TRACE(simd->name);
    const auto multiply = [&](int64_t first, int64_t rows, int64_t column, int64_t columns) {
      std::vector<float> out(static_cast<size_t>(rows * columns));
      simd->multiply_pairs(reinterpret_cast<const char*>(weights.data() + 2 * column), in, x.data() + first * in, in,
                           rows, columns, {.out = out.data(), .stride = columns, .bias = nullptr, .accumulate = false});
      return out;
    };
    const std::vector<float> all = multiply(0, kRows, 0, kPairColumns);
    for (const int64_t rows : {1, 5, 16, 20, 43, 64, 100}) {
      if (simd->has_tiles && rows <= kFewPairRows) continue;
      for (const int64_t column : {int64_t{0}, kPairColumns / 2}) {
        const std::vector<float> some = multiply(kRows - rows, rows, column, kPairColumns / 2);
        for (int64_t i = 0; i < std::ssize(some); ++i) {
          const int64_t row = kRows - rows + i / (kPairColumns / 2), c = column + i % (kPairColumns / 2);
          ASSERT_EQ(some[static_cast<size_t>(i)], all[static_cast<size_t>(row * kPairColumns + c)]) << row << ", " << c;
        }
      }
    }
  }
}

// All values of e4m3 but NaN; row counts that are widened in registers, in the first cache, and by turns.
TEST(Simd, ProductsOfATileOfFp8AreThoseOfItsValues) {
  constexpr int64_t kIn = 300, kRows = 260;
  const int64_t scale_rows = scales_per_row(kIn);
  std::vector<uint8_t> weights(320 * kF8Columns);  // with zeros behind kIn
  for (size_t i = 0; i < kIn * kF8Columns; ++i) {
    weights[i] = static_cast<uint8_t>(i * 37);
    if ((weights[i] & 0x7f) == 0x7f) weights[i] = 0;
  }
  std::vector<float> scales(static_cast<size_t>(scale_rows * kF8Columns)), bias(kF8Columns);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = std::exp2(static_cast<float>(i % 5) - 9);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i);
  std::vector<uint16_t> x(kRows * kIn);
  for (size_t i = 0; i < x.size(); ++i) x[i] = tensor::float_to_bf16(static_cast<float>(i * 7 % 17) - 8);
  for (const Simd* simd : runnable_simds()) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 16, 17, 65, 128, 129, 260}) {
      const bool more = rows % 2 == 0;
      SCOPED_TRACE(std::string(simd->name) + ", rows " + std::to_string(rows));
      std::vector<float> out(kRows * kF8Columns, 3.0f);
      simd->multiply_f8_tile(
          weights.data(), scales.data(), kIn, x.data(), kIn, rows,
          {.out = out.data(), .stride = kF8Columns, .bias = more ? bias.data() : nullptr, .accumulate = more});
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t c = 0; c < kF8Columns; ++c) {
          const auto at = static_cast<size_t>(r * kF8Columns + c);
          double want = 3, size = 0;
          if (r < rows) {
            want = more ? 3 + static_cast<double>(bias[static_cast<size_t>(c)]) : 0;
            size = std::abs(want);
            for (int64_t k = 0; k < kIn; ++k) {
              const double term = static_cast<double>(tensor::bf16_to_float(x[static_cast<size_t>(r * kIn + k)])) *
                                  static_cast<double>(tensor::f8_e4m3_to_float(
                                      weights[static_cast<size_t>((k / 2 * kF8Columns + c) * 2 + k % 2)])) *
                                  static_cast<double>(scales[static_cast<size_t>(k / kScaledValues * kF8Columns + c)]);
              want += term;
              size += std::abs(term);
            }
          }
          // Each product and sum is rounded to float32.
          ASSERT_NEAR(static_cast<double>(out[at]), want, size * (kIn + 4) * 0x1p-24) << r << ", " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels::cpu
