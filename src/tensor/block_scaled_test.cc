#include "tensor/block_scaled.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

namespace sluice::tensor {
namespace {

struct Plain {
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

class Source final : public TensorSource {
 public:
  explicit Source(std::map<std::string, Plain> tensors) : tensors_(std::move(tensors)) {}
  Result<StoredTensor> find(std::string_view name) const override {
    const auto at = tensors_.find(std::string(name));
    if (at == tensors_.end()) return Error{ErrorCode::kNotFound, "no tensor " + std::string(name)};
    return StoredTensor{
        .name = at->first, .dtype = at->second.dtype, .shape = at->second.shape, .data = at->second.bytes};
  }
  bool has(std::string_view name) const override { return tensors_.contains(std::string(name)); }

 private:
  std::map<std::string, Plain> tensors_;
};

std::vector<std::byte> floats(const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::vector<std::byte> halves(const std::vector<uint16_t>& bits) {
  std::vector<std::byte> bytes(bits.size() * 2);
  std::memcpy(bytes.data(), bits.data(), bytes.size());
  return bytes;
}

// [3, 5] ones in blocks of 2x4, whose scales are 1 2 / 3 4.
std::map<std::string, Plain> sample() {
  return {{"a.weight", {DType::kF8E4M3, {3, 5}, std::vector<std::byte>(15, std::byte{0x38})}},
          {"a.weight_scale_inv", {DType::kF32, {2, 2}, floats({1, 2, 3, 4})}},
          {"plain.weight", {DType::kF32, {1}, floats({7})}}};
}

std::string refusal(std::map<std::string, Plain> tensors) {
  const auto source = block_scaled(std::make_unique<Source>(std::move(tensors)), 2, 4);
  const auto found = source->find_shaped("a.weight", {3, 5});
  return found.ok() ? "(accepted)" : found.error().message;
}

TEST(BlockScaledTest, EachValueIsTimesTheScaleOfItsBlock) {
  const auto source = block_scaled(std::make_unique<Source>(sample()), 2, 4);
  const auto tensor = source->find_shaped("a.weight", {3, 5});
  ASSERT_TRUE(tensor.ok()) << tensor.error().message;
  std::vector<float> values(10);
  tensor->read_rows(1, 2, values.data());
  EXPECT_EQ(values, (std::vector<float>{1, 1, 1, 1, 2, 3, 3, 3, 3, 4}));
  EXPECT_FALSE(source->find_shaped("plain.weight", {1})->scales.has_value());
}

TEST(BlockScaledTest, ScalesOfSixteenBitsAreWidened) {
  const Plain scales[] = {{DType::kBf16, {2, 2}, halves({0x3f80, 0x4000, 0x4040, 0x4080})},
                          {DType::kF16, {2, 2}, halves({0x3c00, 0x4000, 0x4200, 0x4400})}};
  for (const Plain& stored : scales) {
    auto tensors = sample();
    tensors["a.weight_scale_inv"] = stored;
    const auto source = block_scaled(std::make_unique<Source>(std::move(tensors)), 2, 4);
    const auto tensor = source->find_shaped("a.weight", {3, 5});
    ASSERT_TRUE(tensor.ok()) << tensor.error().message;
    std::vector<float> values(15);
    tensor->read_rows(0, 3, values.data());
    EXPECT_EQ(values, (std::vector<float>{1, 1, 1, 1, 2, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4}));
    const auto part = tensor->rows(1, 2).columns(3, 2);
    ASSERT_TRUE(part.ok());
    values.resize(4);
    part->read_rows(0, 2, values.data());
    EXPECT_EQ(values, (std::vector<float>{1, 2, 3, 4}));
  }
}

TEST(BlockScaledTest, WhatIsWrongWithScalesIsNamed) {
  auto wrong = sample();
  wrong["a.weight_scale_inv"] = {DType::kF32, {2, 1}, floats({1, 2})};
  EXPECT_EQ(refusal(wrong), "tensor a.weight_scale_inv: its shape is [2, 1] where blocks of 2x4 need [2, 2]");
  wrong["a.weight_scale_inv"] = {DType::kI32, {2, 2}, std::vector<std::byte>(16)};
  EXPECT_EQ(refusal(wrong), "tensor a.weight_scale_inv: its type is I32, not F32, BF16 or F16");
  wrong.erase("a.weight_scale_inv");
  EXPECT_EQ(refusal(wrong), "no tensor a.weight_scale_inv");
}

TEST(BlockScaledTest, FloatsOfEightBitsNeedScales) {
  const Source source(sample());
  EXPECT_NE(source.find_shaped("a.weight", {3, 5}).error().message.find("without scales"), std::string::npos);
}

}  // namespace
}  // namespace sluice::tensor
