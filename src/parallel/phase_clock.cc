#include "parallel/phase_clock.h"

#include <utility>

namespace sluice::parallel {

PhaseClock::~PhaseClock() {
  if (runs()) running_ = nullptr;
}

void PhaseClock::start(size_t most) {
  most_ = most;
  steps_.clear();
  now_.reset();
  running_ = this;
}

std::vector<RecordedStep> PhaseClock::stop() {
  if (runs()) running_ = nullptr;
  now_.reset();
  return std::exchange(steps_, {});
}

void PhaseClock::arrive(int64_t exchange) {
  if (!runs() || steps_.size() >= most_) return;
  since_ = clock_.now();
  phase_ = Phase::kExchange;
  now_ = {.exchange = exchange, .arrived = since_};
}

void PhaseClock::leave() {
  if (!now_) return;
  change(Phase::kPlan);
  now_->left = since_;
}

void PhaseClock::end_step(int64_t tokens, bool extend) {
  if (!now_) return;
  change(Phase::kNone);
  now_->ended = since_;
  now_->tokens = tokens;
  now_->extend = extend;
  steps_.push_back(*std::exchange(now_, std::nullopt));
}

void PhaseClock::change(Phase phase) {
  if (!now_) return;
  const TimePoint at = clock_.now();
  now_->spent[static_cast<size_t>(phase_)] += at - since_;
  phase_ = phase;
  since_ = at;
}

}  // namespace sluice::parallel
