#include "models/layers/state_cache.h"

#include "base/check.h"

namespace sluice::models {

StateCache::~StateCache() {
  if (memory_ != nullptr) backend_.release(memory_, static_cast<size_t>(rows_) * bytes_per_sequence());
}

StateCache::State StateCache::declare(int64_t values) {
  SLUICE_CHECK(memory_ == nullptr, "a state of {} values is declared after the states were allocated", values);
  before_.push_back(values_per_sequence_);
  values_per_sequence_ += values;
  return {before_.size() - 1};
}

Result<void> StateCache::allocate(int64_t rows) {
  if (values_per_sequence_ == 0) return {};
  SLUICE_CHECK(memory_ == nullptr, "the states are allocated twice");
  SLUICE_TRY(void* memory, backend_.allocate(static_cast<size_t>(rows) * bytes_per_sequence()));
  memory_ = static_cast<float*>(memory);
  rows_ = rows;
  return {};
}

}  // namespace sluice::models
