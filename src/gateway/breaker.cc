#include "gateway/breaker.h"

#include <algorithm>

#include "gateway/worker_rules.h"

namespace sluice::gateway {

BreakerRules BreakerRules::from(const GatewayOptions& options) { return WorkerRules::from(options).breaker(); }

std::string_view to_string(BreakerState state) {
  switch (state) {
    case BreakerState::kClosed:
      return "closed";
    case BreakerState::kOpen:
      return "open";
    case BreakerState::kHalfOpen:
      return "half_open";
  }
  return "unknown";
}

void Breaker::set(BreakerState state) {
  const BreakerState before = state_.exchange(state, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_relaxed);
  faults_.clear();
  has_faults_.store(false, std::memory_order_relaxed);
  successes_ = 0;
  trial_ = overtaken_ = false;
  if (state == BreakerState::kOpen) opened_ = clock_.now();
  if (report_ && before != state) report_(before, state);
}

bool Breaker::admits() const {
  if (state() == BreakerState::kClosed) return true;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kOpen) return open_time_is_over();
  return !trial_;
}

bool Breaker::begin(Permit& permit) {
  // The number is read first: if the state changes in between, the permit is of the past and counts for nothing.
  permit = {.trial = false, .epoch = epoch_.load(std::memory_order_acquire)};
  if (state() == BreakerState::kClosed) return true;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kOpen) {
    if (!open_time_is_over()) return false;
    set(BreakerState::kHalfOpen);
  }
  permit.epoch = epoch_.load(std::memory_order_relaxed);
  if (state() == BreakerState::kClosed) return true;
  if (trial_) return false;
  permit.trial = trial_ = true;
  return true;
}

void Breaker::success(const Permit& permit) {
  if (!permit.trial && !has_faults_.load(std::memory_order_relaxed)) return;
  std::lock_guard lock(mutex_);
  if (permit.epoch != epoch_) return;
  if (!permit.trial) {
    faults_.clear();
    has_faults_.store(false, std::memory_order_relaxed);
    return;
  }
  trial_ = false;
  if (++successes_ >= rules_.success_threshold) set(BreakerState::kClosed);
}

void Breaker::fault(const Permit& permit) {
  std::lock_guard lock(mutex_);
  if (!rules_.enabled) return;
  const bool was_overtaken = overtaken_ && permit.trial && permit.epoch + 1 == epoch_;
  if (permit.epoch != epoch_ && !was_overtaken) return;
  if (permit.trial) {
    set(BreakerState::kOpen);
    return;
  }
  const TimePoint now = clock_.now();
  while (!faults_.empty() && now - faults_.front() > rules_.window) faults_.pop_front();
  faults_.push_back(now);
  has_faults_.store(true, std::memory_order_relaxed);
  if (static_cast<int64_t>(faults_.size()) >= rules_.failure_threshold) set(BreakerState::kOpen);
}

void Breaker::neutral(const Permit& permit) {
  if (!permit.trial) return;
  std::lock_guard lock(mutex_);
  if (permit.epoch == epoch_) trial_ = false;
}

bool Breaker::recovered() {
  if (state() != BreakerState::kOpen) return false;
  std::lock_guard lock(mutex_);
  if (state() != BreakerState::kOpen) return false;
  set(BreakerState::kHalfOpen);
  return true;
}

void Breaker::probe_passed() {
  if (state() == BreakerState::kClosed) return;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kOpen && open_time_is_over()) set(BreakerState::kHalfOpen);
  if (state() != BreakerState::kHalfOpen || ++successes_ < rules_.success_threshold) return;
  const bool overtakes = trial_;
  set(BreakerState::kClosed);
  overtaken_ = overtakes;
}

std::optional<Duration> Breaker::open_for() const {
  if (state() == BreakerState::kClosed) return std::nullopt;
  std::lock_guard lock(mutex_);
  if (state() == BreakerState::kClosed) return std::nullopt;
  if (state() == BreakerState::kHalfOpen) return Duration::zero();
  return std::max(rules_.open_time - (clock_.now() - opened_), Duration::zero());
}

Breaker::Streak Breaker::streak() const {
  const TimePoint now = clock_.now();
  std::lock_guard lock(mutex_);
  const auto in_window = [&](TimePoint fault) { return now - fault <= rules_.window; };
  return {.faults = std::ranges::count_if(faults_, in_window), .successes = successes_};
}

void Breaker::reset() {
  std::lock_guard lock(mutex_);
  set(BreakerState::kClosed);
}

void Breaker::set_rules(BreakerRules rules) {
  std::lock_guard lock(mutex_);
  rules_ = rules;
  if (!rules.enabled && state() != BreakerState::kClosed) set(BreakerState::kClosed);
}

}  // namespace sluice::gateway
