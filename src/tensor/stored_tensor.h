// A tensor as it lies in a file, and where a model's tensors come from.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sluice::tensor {

// Scales of a matrix whose values are stored in blocks: value [i, j] is its stored one times scale [i / rows, j /
// columns] of a row-major matrix of plain floats.
struct BlockScales {
  int64_t rows = 0;  // of a block
  int64_t columns = 0;
  int64_t per_row = 0;  // scales in a row of blocks
  std::span<const std::byte> values;
  DType dtype = DType::kF32;  // of the scales
  // Where the tensor begins in the matrix that was divided into blocks.
  int64_t first_row = 0;
  int64_t first_column = 0;

  // Of value [row, column] of the tensor.
  float at(int64_t row, int64_t column) const {
    const int64_t i = (first_row + row) / rows * per_row + (first_column + column) / columns;
    float value;
    to_float(dtype, values.data() + static_cast<size_t>(i) * block_bytes(dtype), 1, &value);
    return value;
  }
};

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first, as in PyTorch: a linear layer is [out, in]
  std::span<const std::byte> data;
  size_t row_stride = 0;              // bytes from row to row; 0 = they follow each other
  std::optional<BlockScales> scales;  // of a matrix in kF8E4M3

  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    return count;
  }
  // Values per outermost index.
  int64_t row_elements() const { return shape.empty() || shape[0] == 0 ? 0 : elements() / shape[0]; }
  size_t row_bytes() const { return bytes_of(dtype, static_cast<size_t>(row_elements())); }
  const std::byte* row(int64_t i) const {
    return data.data() + static_cast<size_t>(i) * (row_stride == 0 ? row_bytes() : row_stride);
  }
  // Widens rows first .. first + count of the outermost extent into `to` [count, row_elements], scales applied.
  void read_rows(int64_t first, int64_t count, float* to) const;
  // Rows first .. first + count; columns first .. first + count of a matrix. Nothing is copied. kUnimplemented where
  // columns would begin or end within a quantised block.
  StoredTensor rows(int64_t first, int64_t count) const;
  Result<StoredTensor> columns(int64_t first, int64_t count) const;
};

// Looks tensors up by the names of the Hugging Face layout ("model.layers.0.self_attn.q_proj.weight"). Any thread.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // kNotFound names the file.
  virtual Result<StoredTensor> find(std::string_view name) const = 0;
  virtual bool has(std::string_view name) const = 0;
  // Fails also if its values are none that read_rows() can widen: integers, or 8 bits without their scales.
  Result<StoredTensor> find_weight(std::string_view name) const;
  // Of those; fails with the file, the tensor and both shapes unless the tensor has this shape.
  virtual Result<StoredTensor> find_shaped(std::string_view name, std::vector<int64_t> shape) const;
};

}  // namespace sluice::tensor
