// How many requests are with workers at once and begin per second, and who waits: a
// true semaphore and a token bucket in front of one FIFO queue of bounded length.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace sluice::gateway {

// Any thread.
class Admission {
 public:
  // `slots` < 0 = no limit. `per_second`: requests that may begin, 0 = no limit; as many as there are slots may begin
  // at once, or those of one second where there is no limit of slots. `clock` outlives this.
  Admission(int64_t slots, int64_t queue_size, const Clock& clock, double per_second = 0);

  // Needed with `per_second`, before the first request: `alarm` has begin_due() called after the duration, by anybody.
  // It is called again only after that.
  void set_alarm(std::function<void(Duration)> alarm) { alarm_ = std::move(alarm); }
  void begin_due();

  // A place among the requests that are with workers; given back when it goes.
  class Slot {
   public:
    Slot() = default;
    explicit Slot(Admission* owner) : owner_(owner) {}
    Slot(Slot&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
    Slot& operator=(Slot&& other) noexcept {
      std::swap(owner_, other.owner_);
      return *this;
    }
    ~Slot() {
      if (owner_ != nullptr) owner_->release();
    }

   private:
    Admission* owner_ = nullptr;
  };

  // One who waits. `wake` is called at most once, when the slot is theirs, on the thread of whoever gave it back.
  struct Waiter {
    std::function<void()> wake;
    bool granted = false;  // guarded by the admission's mutex
  };
  enum class Entry { kAdmitted, kQueued, kFull };
  // True: as kAdmitted. False: enter() decides.
  bool try_enter();
  // kAdmitted: the caller has a slot and wraps it in a Slot. kQueued: `waiter` is in the queue.
  Entry enter(const std::shared_ptr<Waiter>& waiter);
  // Ends the wait. True: the slot is the caller's; false: it has left the queue without one.
  bool leave(const std::shared_ptr<Waiter>& waiter);

  int64_t in_flight() const { return in_flight_.load(std::memory_order_relaxed); }
  size_t queued() const;
  // Seconds until one more is likely to enter, from the rate at which slots were given back and that of --rate-limit-
  // tokens-per-second; at least 1.
  int64_t retry_after_seconds() const;

 private:
  void release();
  bool is_limited() const { return slots_ >= 0 || per_second_ > 0; }
  void serve_waiting();
  // With the mutex.
  bool take();
  double tokens_at(TimePoint now) const;
  std::optional<Duration> alarm_to_set();

  const int64_t slots_;
  const int64_t queue_size_;
  const Clock& clock_;
  const double per_second_;
  const double most_tokens_;
  std::function<void(Duration)> alarm_;
  std::atomic<int64_t> in_flight_{0};
  mutable std::mutex mutex_;  // guards the queue; not taken where there is no limit
  std::deque<std::shared_ptr<Waiter>> queue_;
  std::deque<TimePoint> released_;  // the latest
  double tokens_;                   // each lets one request begin
  TimePoint refilled_;
  bool alarm_is_set_ = false;
};

}  // namespace sluice::gateway
