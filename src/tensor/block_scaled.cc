#include "tensor/block_scaled.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace sluice::tensor {
namespace {

class BlockScaledSource final : public TensorSource {
 public:
  BlockScaledSource(std::unique_ptr<TensorSource> source, int64_t block_rows, int64_t block_columns)
      : source_(std::move(source)), rows_(block_rows), columns_(block_columns) {}

  Result<StoredTensor> find(std::string_view name) const override {
    SLUICE_TRY(StoredTensor tensor, source_->find(name));
    if (tensor.dtype != DType::kF8E4M3) return tensor;
    const std::string scales_name = fmt::format("{}_scale_inv", name);
    SLUICE_TRY(const StoredTensor scales, source_->find(scales_name));
    const auto bad = [&](std::string reason) {
      return Error{ErrorCode::kProtocol, fmt::format("tensor {}: {}", scales_name, reason)};
    };
    if (tensor.shape.size() != 2) return bad(fmt::format("{} is no matrix, which scales of blocks are for", name));
    const std::vector<int64_t> shape = {(tensor.shape[0] + rows_ - 1) / rows_,
                                        (tensor.shape[1] + columns_ - 1) / columns_};
    if (scales.dtype != DType::kF32 && scales.dtype != DType::kBf16 && scales.dtype != DType::kF16) {
      return bad(fmt::format("its type is {}, not F32, BF16 or F16", to_string(scales.dtype)));
    }
    if (scales.shape != shape) {
      return bad(fmt::format("its shape is [{}] where blocks of {}x{} need [{}]", fmt::join(scales.shape, ", "), rows_,
                             columns_, fmt::join(shape, ", ")));
    }
    tensor.scales = BlockScales{
        .rows = rows_, .columns = columns_, .per_row = shape[1], .values = scales.data, .dtype = scales.dtype};
    return tensor;
  }
  bool has(std::string_view name) const override { return source_->has(name); }

 private:
  const std::unique_ptr<TensorSource> source_;
  const int64_t rows_;
  const int64_t columns_;
};

}  // namespace

std::unique_ptr<TensorSource> block_scaled(std::unique_ptr<TensorSource> source, int64_t block_rows,
                                           int64_t block_columns) {
  return std::make_unique<BlockScaledSource>(std::move(source), block_rows, block_columns);
}

}  // namespace sluice::tensor
