#include "tensor/stored_tensor.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"

namespace sluice::tensor {

void StoredTensor::read_rows(int64_t first, int64_t count, float* to) const {
  const int64_t per_row = row_elements();
  SLUICE_CHECK(first >= 0 && count >= 0 && first + count <= (shape.empty() ? 0 : shape[0]),
               "rows {}..{} of {} with shape [{}]", first, first + count, name, fmt::join(shape, ", "));
  if (row_stride == 0 && !scales) {
    to_float(dtype, row(first), static_cast<size_t>(count * per_row), to);
    return;
  }
  for (int64_t i = first; i < first + count; ++i, to += per_row) {
    to_float(dtype, row(i), static_cast<size_t>(per_row), to);
    if (!scales) continue;
    for (int64_t j = 0; j < per_row; ++j) to[j] *= scales->at(i, j);
  }
}

StoredTensor StoredTensor::rows(int64_t first, int64_t count) const {
  SLUICE_CHECK(!shape.empty() && first >= 0 && count >= 0 && first + count <= shape[0],
               "rows {}..{} of {} with shape [{}]", first, first + count, name, fmt::join(shape, ", "));
  StoredTensor part = *this;
  part.shape[0] = count;
  const size_t begin = static_cast<size_t>(row(first) - data.data());
  part.data =
      data.subspan(begin, count == 0 ? 0 : static_cast<size_t>(row(first + count - 1) - row(first)) + row_bytes());
  if (part.scales) part.scales->first_row += first;
  return part;
}

Result<StoredTensor> StoredTensor::columns(int64_t first, int64_t count) const {
  SLUICE_CHECK(shape.size() == 2 && first >= 0 && count >= 0 && first + count <= shape[1],
               "columns {}..{} of {} with shape [{}]", first, first + count, name, fmt::join(shape, ", "));
  const auto block = static_cast<int64_t>(block_elements(dtype));
  if (first % block != 0 || count % block != 0) {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("tensor {}: columns {} to {} do not fall on blocks of {} values", name, first,
                             first + count, block)};
  }
  StoredTensor part = *this;
  part.row_stride = row_stride == 0 ? row_bytes() : row_stride;
  part.shape[1] = count;
  const size_t begin = bytes_of(dtype, static_cast<size_t>(first));
  const size_t size = shape[0] == 0 ? 0 : static_cast<size_t>(shape[0] - 1) * part.row_stride + part.row_bytes();
  part.data = data.subspan(std::min(begin, data.size()), size);
  if (part.scales) part.scales->first_column += first;
  return part;
}

Result<StoredTensor> TensorSource::find_weight(std::string_view name) const {
  SLUICE_TRY(StoredTensor tensor, find(name));
  if (tensor.dtype == DType::kI32) {
    return Error{ErrorCode::kProtocol, fmt::format("tensor {} holds I32 values, which are not weights", name)};
  }
  if (tensor.dtype == DType::kF8E4M3 && !tensor.scales) {
    return Error{ErrorCode::kUnimplemented,
                 fmt::format("tensor {} holds F8_E4M3 values without scales of blocks", name)};
  }
  return tensor;
}

Result<StoredTensor> TensorSource::find_shaped(std::string_view name, std::vector<int64_t> shape) const {
  SLUICE_TRY(StoredTensor tensor, find_weight(name));
  if (tensor.shape != shape) {
    return Error{ErrorCode::kProtocol, fmt::format("tensor {} has the shape [{}] where the configuration says [{}]",
                                                   name, fmt::join(tensor.shape, ", "), fmt::join(shape, ", "))};
  }
  return tensor;
}

}  // namespace sluice::tensor
