// The circuit breaker of one worker: closed, open, half-open. In half-open one trial is
// under way at a time, so that a worker that has just come back is not trampled.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "gateway/options.h"

namespace sluice::gateway {

enum class BreakerState : uint8_t { kClosed = 0, kOpen = 1, kHalfOpen = 2 };
std::string_view to_string(BreakerState state);

struct BreakerRules {
  int64_t failure_threshold = 10;  // consecutive faults, all within the window
  int64_t success_threshold = 3;
  Duration open_time = std::chrono::seconds(60);
  Duration window = std::chrono::seconds(120);
  bool enabled = true;

  static BreakerRules from(const GatewayOptions& options);
};

// Any thread.
class Breaker {
 public:
  // `clock` outlives this, and so does `seat`, where the state stands for whoever asks of many breakers; null = in
  // itself. Only this changes it.
  Breaker(BreakerRules rules, const Clock& clock, std::atomic<BreakerState>* seat = nullptr)
      : state_(seat != nullptr ? *seat : own_seat_), clock_(clock), rules_(rules) {}

  // Called with each change, under the lock. Set before the first request.
  void on_change(std::function<void(BreakerState from, BreakerState to)> report) { report_ = std::move(report); }

  // What a request holds while it uses the worker; it ends in exactly one of success(), fault() and neutral(). What
  // began before the state last changed counts for nothing, but for the fault of a trial that probes have overtaken.
  struct Permit {
    bool trial = false;
    uint64_t epoch = 0;
  };
  // False while open, and in half-open while a trial is under way. No lock while closed.
  bool admits() const;
  // Takes the place that admits() promised; false if another request was quicker.
  bool begin(Permit& permit);
  void success(const Permit& permit);
  void fault(const Permit& permit);
  void neutral(const Permit& permit);

  // A probe passed after others had failed, so the worker has come back: an open breaker goes to half-open now. Whether
  // it was open.
  bool recovered();
  // A probe passed. Before the open time is over that says nothing, for a worker may pass its probes and fail its
  // requests; from then on it counts as a trial that went well, beside those of requests: a worker that few requests
  // choose is not kept at one at a time for that. A trial that is under way when probes close the breaker is not waited
  // for, and opens it again if it ends in a fault.
  void probe_passed();
  // How long it stays open, zero of one that is half-open or will be with the next request; none while closed.
  std::optional<Duration> open_for() const;
  // A new process behind the address: closed.
  void reset();
  // From now on; one that is switched off closes.
  void set_rules(BreakerRules rules);

  BreakerState state() const { return state_.load(std::memory_order_relaxed); }
  // What counts towards the next change of state: faults while closed, good trials and passed probes while half-open.
  struct Streak {
    int64_t faults = 0;
    int64_t successes = 0;
  };
  Streak streak() const;

 private:
  void set(BreakerState state);
  bool open_time_is_over() const { return clock_.now() - opened_ >= rules_.open_time; }

  std::atomic<BreakerState> own_seat_{BreakerState::kClosed};
  std::atomic<BreakerState>& state_;

  // Constant after construction.
  const Clock& clock_;
  std::function<void(BreakerState, BreakerState)> report_;

  std::atomic<uint64_t> epoch_{0};  // changes with the state
  std::atomic<bool> has_faults_{false};
  mutable std::mutex mutex_;  // guards what follows, and changes of what stands above
  BreakerRules rules_;
  std::deque<TimePoint> faults_;  // consecutive ones, while closed; those that the window has left are dropped
  TimePoint opened_{};
  int64_t successes_ = 0;
  bool trial_ = false;
  bool overtaken_ = false;  // probes have closed it while a trial was under way, which was of the epoch before
};

}  // namespace sluice::gateway
