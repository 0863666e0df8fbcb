// How many requests a worker may have at once. Two say so, and the less counts: gateway/liveness, of a suspect and of a
// worker that begins slowly; and the worker itself, each time it answers that it is busy. What it had then was too
// much, so its window is half of that. Each answer makes the window one wider, and so does time, as the worker may be
// busy with what others sent it: some moments after the last "busy" there is no window.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "base/clock.h"
#include "gateway/load.h"

namespace sluice::gateway {

// Any thread.
class RequestLimit {
 public:
  static constexpr int64_t kNone = WorkerLoad::kNoLimit;
  // From the last "busy" until all that the worker had before it is allowed again, and more. With the time until
  // somebody looks, full traffic is back within a second.
  static constexpr Duration kRegrowth = std::chrono::milliseconds(500);

  // `seat`, where the limit stands for whoever asks of many workers, outlives this. Only this changes it.
  explicit RequestLimit(std::atomic<int64_t>& seat) : seat_(seat) {}

  // Liveness says so; kNone: it has nothing against it.
  void allow(int64_t most);
  int64_t allowed() const;

  // A request that was sent at `sent` was refused as the worker was busy; it has `others` beside it. Those that were
  // under way already when the window was halved tell nothing new, and no window comes back for them.
  void busy(TimePoint sent, TimePoint now, int64_t others);
  // A good answer.
  void served(TimePoint now) {
    if (is_narrowed()) grow(now, 1);
  }
  // Whether the window still limits.
  bool pass(TimePoint now) {
    if (is_narrowed()) grow(now, 0);
    return is_narrowed();
  }
  bool is_narrowed() const { return narrowed_.load(std::memory_order_relaxed); }
  // A new process is not busy with what the old one had.
  void forget_busy();

 private:
  // All with the mutex.
  int64_t window() const;
  void publish();

  void grow(TimePoint now, int64_t answers);

  std::atomic<int64_t>& seat_;
  std::atomic<bool> narrowed_{false};
  mutable std::mutex mutex_;  // guards what follows, and changes of what stands above
  int64_t allowed_ = kNone;
  // While narrowed: the window at the last "busy", what it grows to, and the good answers since.
  int64_t base_ = 0, target_ = 0, answers_ = 0;
  TimePoint halved_ = TimePoint::min(), last_busy_{};
  TimePoint seen_{};  // the latest that is known here
};

}  // namespace sluice::gateway
