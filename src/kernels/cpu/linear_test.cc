#include "kernels/cpu/linear.h"

#include <gtest/gtest.h>

namespace sluice::kernels::cpu {
namespace {

// Widths of heads, hidden layers and vocabularies, even and odd.
TEST(LinearTest, NoProductIsLeftToTheReferenceLoopsOfOneDnn) {
  const Linear linear(1, choose_simd());
  int products = 0;
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    if (!linear.multiplies(dtype)) continue;
    for (const int64_t in : {64, 576, 1536, 896}) {
      for (const int64_t out : {64, 576, 960, 3072, 1152, 49152}) {
        for (const int64_t rows : {1, 2, 3, 5, 8, 16, 17, 64, 128, 256}) {
          for (const bool accumulate : {false, true}) {
            for (const bool bias : {false, true}) {
              const LinearShape shape{.in = in, .out = out, .dtype = dtype};
              const std::string name = linear.implementation(shape, rows, accumulate, bias);
              ASSERT_FALSE(name.starts_with("ref"))
                  << tensor::to_string(dtype) << " [" << rows << ", " << in << "] x [" << in << ", " << out << "], sum "
                  << accumulate << ", bias " << bias;
              ++products;
            }
          }
        }
      }
    }
  }
  EXPECT_GE(products, 4 * 6 * 10 * 4);
}

TEST(LinearTest, NorAreBlocksThatAreWidened) {
  const Linear linear(1, choose_simd());
  for (const int64_t rows : {1, 16, 17, 64, 256}) {
    for (const bool accumulate : {false, true}) {
      const LinearShape shape{.in = 576, .out = 3072, .stored = DType::kQ4_1};
      EXPECT_FALSE(linear.implementation(shape, rows, accumulate, false).starts_with("ref")) << rows;
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        if (!linear.multiplies(dtype)) continue;
        const LinearShape fp8{.in = 7168, .out = 3072, .dtype = dtype, .stored = DType::kF8E4M3};
        EXPECT_FALSE(linear.implementation(fp8, rows, accumulate, false).starts_with("ref")) << rows;
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels::cpu
