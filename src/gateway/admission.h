// How many requests are with workers at once, and who waits (gateway-reference.md 1.1, 6.4): a true semaphore with one
// FIFO queue of bounded length.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "base/clock.h"

namespace sluice::gateway {

// Any thread.
class Admission {
 public:
  // `slots` < 0 = no limit. `clock` outlives this.
  Admission(int64_t slots, int64_t queue_size, const Clock& clock)
      : slots_(slots), queue_size_(queue_size), clock_(clock) {}

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
  // Seconds until a slot is likely to be free, from the rate at which they were given back; at least 1.
  int64_t retry_after_seconds() const;

 private:
  void release();

  const int64_t slots_;
  const int64_t queue_size_;
  const Clock& clock_;
  std::atomic<int64_t> in_flight_{0};
  mutable std::mutex mutex_;  // guards the queue; not taken where there is no limit
  std::deque<std::shared_ptr<Waiter>> queue_;
  std::deque<TimePoint> released_;  // the latest
};

}  // namespace sluice::gateway
