#include "models/layers/kv_cache.h"

#include "base/check.h"

namespace sluice::models {

KvCache::~KvCache() {
  if (memory_ != nullptr) backend_.release(memory_, static_cast<size_t>(slots_) * bytes_per_token());
}

KvCache::Plane KvCache::declare(int64_t width) {
  SLUICE_CHECK(memory_ == nullptr, "a plane of {} values is declared after the KV cache was allocated", width);
  before_.push_back(values_per_token_);
  values_per_token_ += width;
  return {before_.size() - 1};
}

size_t KvCache::bytes_per_token() const { return static_cast<size_t>(values_per_token_) * tensor::block_bytes(dtype_); }

Result<void> KvCache::allocate(int64_t slots) {
  SLUICE_CHECK(memory_ == nullptr, "the KV cache is allocated twice");
  SLUICE_TRY(void* memory, backend_.allocate(static_cast<size_t>(slots) * bytes_per_token()));
  memory_ = static_cast<char*>(memory);
  slots_ = slots;
  return {};
}

}  // namespace sluice::models
