#include "parallel/phase_clock.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <utility>

namespace sluice::parallel {

PhaseClock::PhaseClock(const Clock& clock, std::function<Duration()> queued)
    : clock_(clock), given_queued_(std::move(queued)) {}

PhaseClock::~PhaseClock() {
  if (runs()) running_ = nullptr;
  close_schedstat();
}

void PhaseClock::close_schedstat() {
  if (schedstat_ >= 0) ::close(std::exchange(schedstat_, -1));
}

// proc(5): time on a processor, time in line for one, and how often it got one. Zero where the kernel does not count.
Duration PhaseClock::queued() const {
  if (given_queued_) return given_queued_();
  std::array<char, 96> text{};
  if (schedstat_ < 0 || ::pread(schedstat_, text.data(), text.size() - 1, 0) <= 0) return {};
  char* after = nullptr;
  (void)std::strtoull(text.data(), &after, 10);
  return std::chrono::nanoseconds(std::strtoull(after, nullptr, 10));
}

void PhaseClock::start(size_t most) {
  close_schedstat();
  if (!given_queued_) schedstat_ = ::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  most_ = most;
  steps_.clear();
  now_.reset();
  running_ = this;
}

std::vector<RecordedStep> PhaseClock::stop() {
  if (runs()) running_ = nullptr;
  now_.reset();
  close_schedstat();
  return std::exchange(steps_, {});
}

void PhaseClock::arrive(int64_t exchange) {
  if (!runs() || steps_.size() >= most_) return;
  since_ = clock_.now();
  phase_ = Phase::kExchange;
  // Both looks lie between arrival and departure: what is in line never exceeds what it is a part of.
  now_ = {.exchange = exchange, .arrived = since_, .queued = -queued()};
  queued_asleep_.reset();
}

void PhaseClock::note_sleep() {
  if (now_ && phase_ == Phase::kExchange) queued_asleep_ = queued();
}

void PhaseClock::leave() {
  if (!now_) return;
  const Duration by_now = queued();
  now_->queued += by_now;
  if (queued_asleep_) now_->queued_awake = by_now - *queued_asleep_;
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
