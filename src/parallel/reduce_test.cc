#include "parallel/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tensor/dtype.h"

namespace sluice::parallel {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(FloatToF16Test, GivesBackEveryHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = tensor::f16_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(tensor::f16_to_float(float_to_f16(value))));
    } else {
      ASSERT_EQ(float_to_f16(value), bits);
    }
  }
}

TEST(FloatToF16Test, RoundsToTheNearestAndTiesToEven) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = tensor::f16_to_float(bits);
    const float high = tensor::f16_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;  // exact in float32
    ASSERT_EQ(float_to_f16(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(float_to_f16(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(float_to_f16(std::nextafter(middle, high)), bits + 1);
    ASSERT_EQ(float_to_f16(-middle), 0x8000 | float_to_f16(middle));
  }
  EXPECT_EQ(float_to_f16(65519.99f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_f16(std::numeric_limits<float>::infinity()), 0x7c00);
}

TEST(ReduceTest, AddsInOrder) {
  const float big = 1e8f, minus = -1e8f, one = 1;
  float out = 0;
  const void* first[] = {&big, &minus, &one};
  reduce(Element::kF32, Reduction::kSum, first, &out, sizeof(out));
  EXPECT_EQ(out, 1);
  const void* second[] = {&big, &one, &minus};
  reduce(Element::kF32, Reduction::kSum, second, &out, sizeof(out));
  EXPECT_EQ(out, 0);
}

TEST(ReduceTest, TheLargestIsNanIfThereIsOne) {
  const float values[] = {1, kNan, 2};
  for (int turn = 0; turn < 3; ++turn) {
    const void* inputs[] = {values + turn, values + (turn + 1) % 3, values + (turn + 2) % 3};
    float out = 0;
    reduce(Element::kF32, Reduction::kMax, inputs, &out, sizeof(out));
    EXPECT_TRUE(std::isnan(out)) << turn;
  }
}

TEST(ReduceTest, SumsOfIntegersWrap) {
  const int32_t most = std::numeric_limits<int32_t>::max(), one = 1;
  int32_t out = 0;
  const void* inputs[] = {&most, &one};
  reduce(Element::kI32, Reduction::kSum, inputs, &out, sizeof(out));
  EXPECT_EQ(out, std::numeric_limits<int32_t>::min());
}

TEST(ReduceTest, TakesAnyAlignmentAndAnyLengthBeyondABlock) {
  std::vector<std::byte> a(3 + 5000 * 4), b(1 + 5000 * 4), out(2 + 5000 * 4);
  for (int i = 0; i < 5000; ++i) {
    const float values[] = {static_cast<float>(i), 0.5f};
    std::memcpy(a.data() + 3 + i * 4, &values[0], 4);
    std::memcpy(b.data() + 1 + i * 4, &values[1], 4);
  }
  const void* inputs[] = {a.data() + 3, b.data() + 1};
  reduce(Element::kF32, Reduction::kSum, inputs, out.data() + 2, 5000 * 4);
  for (int i = 0; i < 5000; ++i) {
    float value;
    std::memcpy(&value, out.data() + 2 + i * 4, 4);
    ASSERT_EQ(value, static_cast<float>(i) + 0.5f);
  }
}

}  // namespace
}  // namespace sluice::parallel
