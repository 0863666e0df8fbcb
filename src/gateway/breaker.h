// The circuit breaker of one worker: closed, open, half-open (gateway-reference.md 1.1, 6.2). In half-open one trial is
// under way at a time, so that a worker that has just come back is not trampled.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string_view>

#include "base/clock.h"
#include "gateway/options.h"

namespace sluice::gateway {

enum class BreakerState : uint8_t { kClosed = 0, kOpen = 1, kHalfOpen = 2 };

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
  // `clock` outlives this.
  Breaker(BreakerRules rules, const Clock& clock) : rules_(rules), clock_(clock) {}

  // What a request holds while it uses the worker; it ends in exactly one of the calls below it.
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

  // A passed health probe: an open breaker goes to half-open now.
  void probe_passed();
  // A new process behind the address: closed.
  void reset();

  BreakerState state() const { return state_.load(std::memory_order_relaxed); }

 private:
  void set(BreakerState state);

  const BreakerRules rules_;
  const Clock& clock_;
  std::atomic<BreakerState> state_{BreakerState::kClosed};
  std::atomic<int64_t> faults_{0};  // consecutive
  mutable std::mutex mutex_;        // guards what follows, and changes of the state
  TimePoint first_fault_{};
  TimePoint opened_{};
  int64_t successes_ = 0;
  bool trial_ = false;
  uint64_t epoch_ = 0;  // changes with the state: outcomes of before count for nothing
};

}  // namespace sluice::gateway
