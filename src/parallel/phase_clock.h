// Where the time of an instance's steps goes on one rank: phase by phase, and when its row of each step came and went.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "parallel/progress.h"

namespace sluice::parallel {

inline constexpr size_t kPhases = static_cast<size_t>(Phase::kRebalance) + 1;

// A step as one rank saw it. Times are of the machine's monotonic clock, which the ranks of a host share.
struct RecordedStep {
  int64_t exchange = 0;  // of rows, before the step; its number is the same on all ranks
  TimePoint arrived{};   // with this rank's row
  TimePoint left{};      // with everybody's
  TimePoint ended{};
  Duration queued{};  // between arrived and left, able to go on and without a processor; no more than lies between
  // The part of it since the rank last fell asleep for the others; 0 if it did not, or its communicator does not say
  // so.
  Duration queued_awake{};
  int64_t tokens = 0;   // of this rank's attention group
  bool extend = false;  // some group prefilled
  std::array<Duration, kPhases> spent{};
};

// Used by the rank's thread, on which it runs between start() and stop(); no other one runs there meanwhile. What other
// threads of the rank do is not seen.
class PhaseClock {
 public:
  // `queued`: how long the calling thread has waited for a processor since it began; absent: what the kernel says.
  explicit PhaseClock(const Clock& clock = real_clock(), std::function<Duration()> queued = {});
  ~PhaseClock();
  PhaseClock(const PhaseClock&) = delete;
  PhaseClock& operator=(const PhaseClock&) = delete;

  // The calling thread is in this phase from now on. Where no clock runs, a load and a branch.
  static void enter(Phase phase) {
    if (running_ != nullptr) running_->change(phase);
  }

  bool runs() const { return running_ == this; }
  bool full() const { return runs() && steps_.size() >= most_; }
  // Keeps the first `most` steps.
  void start(size_t most);
  std::vector<RecordedStep> stop();

  // An exchange begins, in which this rank may find that there is no step: then the next one follows.
  void arrive(int64_t exchange);
  // The calling thread sleeps next, until others have come.
  static void fall_asleep() {
    if (running_ != nullptr) running_->note_sleep();
  }
  void leave();
  void end_step(int64_t tokens, bool extend);

 private:
  void change(Phase phase);
  void note_sleep();

  static inline constinit thread_local PhaseClock* running_ = nullptr;

  Duration queued() const;
  void close_schedstat();

  const Clock& clock_;
  const std::function<Duration()> given_queued_;
  int schedstat_ = -1;  // of the thread that records
  size_t most_ = 0;
  std::vector<RecordedStep> steps_;
  std::optional<RecordedStep> now_;        // nothing: between steps
  std::optional<Duration> queued_asleep_;  // queued() when the rank last fell asleep before it left
  Phase phase_ = Phase::kNone;
  TimePoint since_{};
};

}  // namespace sluice::parallel
