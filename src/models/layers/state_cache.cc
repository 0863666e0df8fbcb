#include "models/layers/state_cache.h"

#include "base/check.h"

namespace sluice::models {

StateCache::~StateCache() {
  if (memory_ != nullptr) backend_.release(memory_, static_cast<size_t>(rows_) * bytes_per_sequence());
}

StateCache::State StateCache::declare(int64_t values) {
  SLUICE_CHECK(memory_ == nullptr, "a state of {} values is declared after the states were allocated", values);
  before_.push_back(values_per_sequence_);
  values_.push_back(values);
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

void StateCache::copy(const kernels::Context& context, int64_t from, int64_t to) {
  for (size_t i = 0; i < values_.size(); ++i) {
    const auto bytes = static_cast<size_t>(values_[i]) * sizeof(float);
    const float* source = at({i}) + from * values_[i];
    float* target = at({i}) + to * values_[i];
    if (backend_.host_visible()) {
      backend_.copy_to_device(context, target, source, bytes);
      continue;
    }
    staged_.resize(bytes);
    backend_.copy_to_host(context, staged_.data(), source, bytes);
    backend_.synchronize(context);
    backend_.copy_to_device(context, target, staged_.data(), bytes);
    backend_.synchronize(context);
  }
}

}  // namespace sluice::models
