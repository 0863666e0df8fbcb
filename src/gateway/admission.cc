#include "gateway/admission.h"

#include <algorithm>
#include <cmath>

namespace sluice::gateway {

Admission::Admission(int64_t slots, int64_t queue_size, const Clock& clock, double per_second)
    : slots_(slots),
      queue_size_(queue_size),
      clock_(clock),
      per_second_(per_second),
      most_tokens_(std::max(1.0, slots >= 0 ? static_cast<double>(slots) : per_second)),
      tokens_(most_tokens_),
      refilled_(clock.now()) {}

bool Admission::try_enter() {
  if (!is_limited()) {
    in_flight_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  std::lock_guard lock(mutex_);
  return queue_.empty() && take();
}

Admission::Entry Admission::enter(const std::shared_ptr<Waiter>& waiter) {
  if (!is_limited() && try_enter()) return Entry::kAdmitted;
  std::optional<Duration> pause;
  {
    std::lock_guard lock(mutex_);
    if (queue_.empty() && take()) return Entry::kAdmitted;
    if (static_cast<int64_t>(queue_.size()) >= queue_size_) return Entry::kFull;
    queue_.push_back(waiter);
    pause = alarm_to_set();
  }
  if (pause) alarm_(*pause);
  return Entry::kQueued;
}

bool Admission::leave(const std::shared_ptr<Waiter>& waiter) {
  std::lock_guard lock(mutex_);
  if (waiter->granted) return true;
  std::erase(queue_, waiter);
  return false;
}

void Admission::release() {
  if (slots_ < 0) {
    in_flight_.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    released_.push_back(clock_.now());
    if (released_.size() > 32) released_.pop_front();
    in_flight_.fetch_sub(1, std::memory_order_relaxed);
  }
  serve_waiting();
}

void Admission::begin_due() {
  {
    std::lock_guard lock(mutex_);
    alarm_is_set_ = false;
  }
  serve_waiting();
}

// In the order in which they came, as long as there are slots and tokens.
void Admission::serve_waiting() {
  for (;;) {
    std::shared_ptr<Waiter> next;
    std::optional<Duration> pause;
    {
      std::lock_guard lock(mutex_);
      if (queue_.empty()) return;
      if (take()) {
        next = std::move(queue_.front());
        queue_.pop_front();
        next->granted = true;
      } else {
        pause = alarm_to_set();
      }
    }
    if (next != nullptr) {
      next->wake();
      continue;
    }
    if (pause) alarm_(*pause);
    return;
  }
}

bool Admission::take() {
  if (slots_ >= 0 && in_flight() >= slots_) return false;
  if (per_second_ > 0) {
    const TimePoint now = clock_.now();
    const double tokens = tokens_at(now);
    if (tokens < 1) return false;
    tokens_ = tokens - 1;
    refilled_ = now;
  }
  in_flight_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

double Admission::tokens_at(TimePoint now) const {
  return std::min(most_tokens_, tokens_ + seconds(now - refilled_) * per_second_);
}

// Whoever waits for a slot is served when one is given back; who waits for a token alone needs to be called.
std::optional<Duration> Admission::alarm_to_set() {
  if (per_second_ <= 0 || queue_.empty() || (slots_ >= 0 && in_flight() >= slots_)) return std::nullopt;
  if (std::exchange(alarm_is_set_, true)) return std::nullopt;
  const double missing = std::max(0.0, 1 - tokens_at(clock_.now()));
  return from_seconds(missing / per_second_) + std::chrono::microseconds(100);  // not a moment too early
}

size_t Admission::queued() const {
  std::lock_guard lock(mutex_);
  return queue_.size();
}

int64_t Admission::retry_after_seconds() const {
  const TimePoint now = clock_.now();
  std::lock_guard lock(mutex_);
  const auto ahead = static_cast<double>(queue_.size() + 1);
  double wait = 1;
  if (released_.size() >= 2) {
    const double rate = static_cast<double>(released_.size()) / std::max(1e-3, seconds(now - released_.front()));
    wait = ahead / rate;
  }
  if (per_second_ > 0) wait = std::max(wait, (ahead - tokens_at(now)) / per_second_);
  return static_cast<int64_t>(std::clamp(std::ceil(wait), 1.0, 60.0));
}

}  // namespace sluice::gateway
