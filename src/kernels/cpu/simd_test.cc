#include "kernels/cpu/simd.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

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

// Row counts that are taken in one group, in parts of the summed dimension, and as a whole.
TEST(Simd, ProductsOfPairsAreThoseOfEachRowByItself) {
  constexpr int64_t kIn = 2 * 300, kRows = 70, kStride = kPairColumns + 16;
  std::vector<uint16_t> weights(kIn * kPairColumns), x(kRows * kIn);
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
  for (const Simd* simd : runnable_simds()) {
    for (const int64_t rows : {1, 4, 6, 7, 17, 33, 64, 70}) {
      for (const bool more : {false, true}) {
        SCOPED_TRACE(std::string(simd->name) + ", rows " + std::to_string(rows) + ", more " + std::to_string(more));
        std::vector<float> out = before;
        simd->multiply_pairs(
            reinterpret_cast<const char*>(weights.data()), kIn, x.data(), kIn, rows,
            {.out = out.data(), .stride = kStride, .bias = more ? bias.data() : nullptr, .accumulate = more});
        for (int64_t r = 0; r < kRows; ++r) {
          for (int64_t c = 0; c < kStride; ++c) {
            const auto at = static_cast<size_t>(r * kStride + c);
            float want = before[at];
            if (r < rows && c < kPairColumns) {
              if (!more) want = 0;
              for (int64_t k = 0; k < kIn; ++k) {
                want += tensor::bf16_to_float(x[static_cast<size_t>(r * kIn + k)]) *
                        tensor::bf16_to_float(weights[static_cast<size_t>((k / 2 * kPairColumns + c) * 2 + k % 2)]);
              }
              if (more) want += bias[static_cast<size_t>(c)];
            }
            ASSERT_EQ(out[at], want) << r << ", " << c;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels::cpu
