#include "gateway/breaker.h"

namespace sluice::gateway {

BreakerRules BreakerRules::from(const GatewayOptions& options) {
  return {.failure_threshold = options.cb_failure_threshold,
          .success_threshold = options.cb_success_threshold,
          .open_time = std::chrono::seconds(options.cb_timeout_duration_secs),
          .window = std::chrono::seconds(options.cb_window_duration_secs),
          .enabled = !options.disable_circuit_breaker};
}

void Breaker::set(BreakerState state) {
  state_.store(state, std::memory_order_relaxed);
  ++epoch_;
  successes_ = 0;
  trial_ = false;
  faults_.store(0, std::memory_order_relaxed);
  if (state == BreakerState::kOpen) opened_ = clock_.now();
}

bool Breaker::admits() const {
  if (state() == BreakerState::kClosed) return true;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kOpen) return clock_.now() - opened_ >= rules_.open_time;
  return !trial_;
}

bool Breaker::begin(Permit& permit) {
  if (state() == BreakerState::kClosed) {
    permit = {};
    return true;
  }
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kOpen) {
    if (clock_.now() - opened_ < rules_.open_time) return false;
    set(BreakerState::kHalfOpen);
  }
  if (state() == BreakerState::kHalfOpen) {
    if (trial_) return false;
    trial_ = true;
    permit = {.trial = true, .epoch = epoch_};
  } else {
    permit = {};
  }
  return true;
}

void Breaker::success(const Permit& permit) {
  if (state() == BreakerState::kClosed) {
    if (faults_.load(std::memory_order_relaxed) != 0) faults_.store(0, std::memory_order_relaxed);
    return;
  }
  std::lock_guard lock(mutex_);
  if (!permit.trial || permit.epoch != epoch_) return;
  trial_ = false;
  if (++successes_ >= rules_.success_threshold) set(BreakerState::kClosed);
}

void Breaker::fault(const Permit& permit) {
  if (!rules_.enabled) return;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kClosed) {
    const TimePoint now = clock_.now();
    int64_t faults = faults_.load(std::memory_order_relaxed);
    if (faults == 0 || now - first_fault_ > rules_.window) {
      faults = 0;
      first_fault_ = now;
    }
    faults_.store(++faults, std::memory_order_relaxed);
    if (faults >= rules_.failure_threshold) set(BreakerState::kOpen);
  } else if (permit.trial && permit.epoch == epoch_) {
    set(BreakerState::kOpen);
  }
}

void Breaker::neutral(const Permit& permit) {
  if (!permit.trial) return;
  std::lock_guard lock(mutex_);
  if (permit.epoch == epoch_) trial_ = false;
}

void Breaker::probe_passed() {
  if (state() != BreakerState::kOpen) return;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kOpen) set(BreakerState::kHalfOpen);
}

void Breaker::reset() {
  std::lock_guard lock(mutex_);
  set(BreakerState::kClosed);
}

}  // namespace sluice::gateway
