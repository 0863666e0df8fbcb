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
}

Result<StoredTensor> find_shaped(const TensorSource& source, std::string_view name, std::vector<int64_t> shape) {
  SLUICE_TRY(StoredTensor tensor, source.find(name));
  if (tensor.dtype == DType::kI32) {
    return Error{ErrorCode::kProtocol, fmt::format("tensor {} holds I32 values, which are not weights", name)};
  }
  if (tensor.shape != shape) {
    return Error{ErrorCode::kProtocol, fmt::format("tensor {} has the shape [{}] where the configuration says [{}]",
                                                   name, fmt::join(tensor.shape, ", "), fmt::join(shape, ", "))};
  }
  return tensor;
}

}  // namespace sluice::tensor
