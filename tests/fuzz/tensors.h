// What holds for every tensor that a reader of files gives.
#pragma once

#include <algorithm>
#include <vector>

#include "fuzz.h"
#include "tensor/stored_tensor.h"

namespace sluice::fuzz {

inline void check_tensor(const tensor::StoredTensor& tensor) {
  for (const int64_t extent : tensor.shape) FUZZ_CHECK(extent >= 0, "no extent is negative");
  const int64_t elements = tensor.elements();
  FUZZ_CHECK(elements >= 0 && tensor.data.size() == tensor::bytes_of(tensor.dtype, static_cast<size_t>(elements)),
             "a tensor has the bytes that its shape needs");
  // Each byte is read: one that is not of the file is found by the sanitizer.
  unsigned sum = 0;
  for (const std::byte byte : tensor.data) sum += static_cast<unsigned>(byte);
  const bool weights = tensor.dtype != tensor::DType::kI32 && tensor.dtype != tensor::DType::kF8E4M3;
  if (sum > 1u << 30 || !weights || tensor.shape.empty() || tensor.shape[0] > 1 << 16) return;

  std::vector<float> values(static_cast<size_t>(elements));
  tensor.read_rows(0, tensor.shape[0], values.data());
  if (tensor.shape.size() != 2 || tensor.shape[1] == 0) return;
  const int64_t skip = tensor.shape[1] / 2 / static_cast<int64_t>(tensor::block_elements(tensor.dtype)) *
                       static_cast<int64_t>(tensor::block_elements(tensor.dtype));
  const auto right = tensor.columns(skip, tensor.shape[1] - skip);
  FUZZ_CHECK(right.ok(), "columns are cut at blocks");
  std::vector<float> part(static_cast<size_t>(right->elements()));
  const int64_t below = tensor.shape[0] / 2, width = right->shape[1];
  right->rows(below, tensor.shape[0] - below).read_rows(0, tensor.shape[0] - below, part.data());
  for (int64_t row = below; row < tensor.shape[0]; ++row) {
    const auto* whole = values.data() + row * tensor.shape[1] + skip;
    const auto* cut = part.data() + (row - below) * width;
    FUZZ_CHECK(std::equal(whole, whole + width, cut, [](float a, float b) { return a == b || (a != a && b != b); }),
               "a part has the values of the whole");
  }
}

}  // namespace sluice::fuzz
