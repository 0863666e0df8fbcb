// A tensor as it lies in a file, and where a model's tensors come from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sluice::tensor {

struct StoredTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first, as in PyTorch: a linear layer is [out, in]
  std::span<const std::byte> data;

  int64_t elements() const {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    return count;
  }
  // Values per outermost index.
  int64_t row_elements() const { return shape.empty() || shape[0] == 0 ? 0 : elements() / shape[0]; }
  // Widens rows first .. first + count of the outermost extent into `to` [count, row_elements].
  void read_rows(int64_t first, int64_t count, float* to) const;
};

// Looks tensors up by the names of the Hugging Face layout ("model.layers.0.self_attn.q_proj.weight"). Any thread.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // kNotFound names the file.
  virtual Result<StoredTensor> find(std::string_view name) const = 0;
  virtual bool has(std::string_view name) const = 0;
};

// Fails with the file, the tensor and both shapes unless the tensor has this shape.
Result<StoredTensor> find_shaped(const TensorSource& source, std::string_view name, std::vector<int64_t> shape);

}  // namespace sluice::tensor
