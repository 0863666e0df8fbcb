#include "tensor/stored_tensor.h"

#include <fmt/ranges.h>

#include "base/check.h"

namespace sluice::tensor {

void StoredTensor::read_rows(int64_t first, int64_t count, float* to) const {
  const int64_t per_row = row_elements();
  SLUICE_CHECK(first >= 0 && count >= 0 && first + count <= (shape.empty() ? 0 : shape[0]),
               "rows {}..{} of {} with shape [{}]", first, first + count, name, fmt::join(shape, ", "));
  const size_t row_bytes = bytes_of(dtype, static_cast<size_t>(per_row));
  to_float(dtype, data.data() + static_cast<size_t>(first) * row_bytes, static_cast<size_t>(count * per_row), to);
  if (!scales) return;
  for (int64_t row = first; row < first + count; ++row) {
    for (int64_t j = 0; j < per_row; ++j) *to++ *= scales->at(row / scales->rows, j / scales->columns);
  }
}

Result<StoredTensor> find_shaped(const TensorSource& source, std::string_view name, std::vector<int64_t> shape) {
  SLUICE_TRY(StoredTensor tensor, source.find(name));
  if (tensor.dtype == DType::kI32) {
    return Error{ErrorCode::kProtocol, fmt::format("tensor {} holds I32 values, which are not weights", name)};
  }
  if (tensor.dtype == DType::kF8E4M3 && !tensor.scales) {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("tensor {} holds F8_E4M3 values without scales of blocks", name)};
  }
  if (tensor.shape != shape) {
    return Error{ErrorCode::kProtocol, fmt::format("tensor {} has the shape [{}] where the configuration says [{}]",
                                                   name, fmt::join(tensor.shape, ", "), fmt::join(shape, ", "))};
  }
  return tensor;
}

}  // namespace sluice::tensor
