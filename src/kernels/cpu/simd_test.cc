#include "kernels/cpu/simd.h"

#include <gtest/gtest.h>

#include <array>

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

}  // namespace
}  // namespace sluice::kernels::cpu
