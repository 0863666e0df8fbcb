#include "tensor/dummy.h"

#include <gtest/gtest.h>

#include <cmath>

namespace sluice::tensor {
namespace {

double spread_of(const StoredTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  tensor.read_rows(0, tensor.shape[0], values.data());
  double squares = 0;
  for (const float value : values) {
    EXPECT_TRUE(std::isfinite(value));
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  return std::sqrt(squares / static_cast<double>(values.size()));
}

TEST(DummyTest, MatricesAreSmallVectorsOneAndBiasesZero) {
  const auto source = dummy_source([](std::string_view name) { return name == "fp8"; });
  const auto matrix = source->find_shaped("m", {300, 200});
  ASSERT_TRUE(matrix.ok()) << matrix.error().message;
  EXPECT_EQ(matrix->dtype, DType::kBf16);
  EXPECT_NEAR(spread_of(*matrix), 1.0 / 64, 1e-3);
  const auto fp8 = source->find_shaped("fp8", {300, 200});
  ASSERT_TRUE(fp8.ok());
  EXPECT_EQ(fp8->dtype, DType::kF8E4M3);
  EXPECT_NEAR(spread_of(*fp8), 1.0 / 64, 1.0 / 128);
  EXPECT_EQ(spread_of(*source->find_shaped("norm.weight", {64})), 1);
  EXPECT_EQ(spread_of(*source->find_shaped("q_proj.bias", {64})), 0);
}

TEST(DummyTest, LargerTensorsLeaveEarlierOnesWhereTheyAre) {
  const auto source = dummy_source([](std::string_view) { return false; });
  const auto small = source->find_shaped("a", {10, 10}).value();
  const std::byte first = small.data[0];
  const auto large = source->find_shaped("b", {4096, 4096}).value();
  EXPECT_EQ(large.data.size(), 2u * 4096 * 4096);
  EXPECT_EQ(small.data[0], first);
  EXPECT_EQ(large.data[0], first);
  EXPECT_EQ(large.data[1 << 20], first);  // the pattern begins again
}

}  // namespace
}  // namespace sluice::tensor
