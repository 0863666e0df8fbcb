// Steps go by exact counts or through the slab. All ranks know which it is.
#pragma once

#include "moe/deepep.h"
#include "moe/low_latency.h"

namespace sluice::moe {

class DeepEpAuto final : public Dispatcher {
 public:
  DeepEpAuto(const kernels::Backend& backend, const parallel::Groups& groups, const Sizes& sizes,
             const DeepEpOptions& options)
      : normal_(backend, groups, sizes, options.fp8),
        low_latency_(backend, groups, sizes, options.capacity, options.fp8),
        capacity_(options.capacity) {}

  Result<void> allocate(int64_t max_tokens, int64_t max_received) override {
    SLUICE_TRY_VOID(normal_.allocate(max_tokens, max_received));
    return low_latency_.allocate(max_tokens, max_received);
  }
  Result<void> agree(const kernels::Context& context, const Tokens& own, bool exact) override {
    chosen_ = exact ? static_cast<Dispatcher*>(&normal_) : &low_latency_;
    return chosen_->agree(context, own, exact);
  }
  Result<Tokens> dispatch(const kernels::Context& context) override { return chosen_->dispatch(context); }
  Result<void> combine(const kernels::Context& context) override { return chosen_->combine(context); }
  int64_t slab_tokens() const override { return capacity_; }
  int64_t slab_rows() const override { return low_latency_.slab_rows(); }
  size_t bytes() const override { return normal_.bytes() + low_latency_.bytes(); }

 private:
  DeepEp normal_;
  LowLatency low_latency_;
  const int64_t capacity_;
  Dispatcher* chosen_ = &normal_;  // of the last agree()
};

}  // namespace sluice::moe
