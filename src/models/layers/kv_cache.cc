#include "models/layers/kv_cache.h"

#include "base/check.h"

namespace sluice::models {

KvCache::~KvCache() {
  if (memory_ != nullptr) backend_.release(memory_, static_cast<size_t>(slots_) * bytes_per_token());
}

KvCache::Plane KvCache::declare(int64_t width, int64_t group) {
  SLUICE_CHECK(memory_ == nullptr, "a plane of {} values is declared after the KV cache was allocated", width);
  rows_.push_back({.format = {.dtype = dtype_, .width = width, .group = group}, .bytes_before = bytes_per_token_});
  bytes_per_token_ += rows_.back().format.bytes();
  return {rows_.size() - 1};
}

void KvCache::store_as(kernels::DType dtype) {
  SLUICE_CHECK(memory_ == nullptr, "the KV cache has {} already", tensor::to_string(dtype_));
  dtype_ = dtype;
  bytes_per_token_ = 0;
  for (Row& row : rows_) {
    row.format.dtype = dtype;
    row.bytes_before = bytes_per_token_;
    bytes_per_token_ += row.format.bytes();
  }
}

Result<void> KvCache::allocate(int64_t slots) {
  SLUICE_CHECK(memory_ == nullptr, "the KV cache is allocated twice");
  SLUICE_TRY(void* memory, backend_.allocate(static_cast<size_t>(slots) * bytes_per_token()));
  memory_ = static_cast<char*>(memory);
  slots_ = slots;
  return {};
}

}  // namespace sluice::models
