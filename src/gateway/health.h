// What probes say about one worker: consecutive results against thresholds, and when to ask again. A value; the control
// thread owns it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace sluice::gateway {

struct HealthRules {
  int64_t failures = 3;   // consecutive, until it is not used
  int64_t successes = 2;  // consecutive, until it is used again
  Duration interval = std::chrono::seconds(60);
  Duration undecided = std::chrono::seconds(1);  // between probes from a first fault until it is decided

  Duration soon() const { return std::min(undecided, interval); }
};

class HealthState {
 public:
  explicit HealthState(HealthRules rules, bool healthy = false) : rules_(rules), healthy_(healthy), proven_(healthy) {}

  bool healthy() const { return healthy_; }
  // From the next result on.
  void set_rules(HealthRules rules) { rules_ = rules; }
  void passed() {
    failures_ = 0;
    suspect_ = false;
    // A worker that was never ready needs one success only: registration is over then.
    if (!healthy_ && (++successes_ >= rules_.successes || !proven_)) force(true);
  }
  void failed() {
    successes_ = 0;
    if (healthy_ && ++failures_ >= rules_.failures) force(false);
  }
  // A request met a fault: ask soon.
  void suspect() { suspect_ = true; }
  // Somebody who knows better says so.
  void force(bool healthy) {
    healthy_ = healthy;
    proven_ = proven_ || healthy;
    failures_ = successes_ = 0;
    suspect_ = false;
  }
  // From the next probe until it is used, if that one passes and all after it.
  Duration after_probe() const {
    return healthy_ || !proven_ ? Duration(0) : (rules_.successes - successes_ - 1) * rules_.soon();
  }
  // `breaker_open_for`: Breaker::open_for() of the worker. When that time is over probes are trials, and close it soon.
  Duration next_probe(std::optional<Duration> breaker_open_for = std::nullopt) const {
    const bool undecided = suspect_ || (healthy_ && failures_ > 0) || (!healthy_ && proven_);
    const Duration pause = undecided ? rules_.soon() : rules_.interval;
    return breaker_open_for ? std::min(pause, std::max(*breaker_open_for, rules_.soon())) : pause;
  }

 private:
  HealthRules rules_;
  bool healthy_;
  bool proven_;
  bool suspect_ = false;
  int64_t failures_ = 0;
  int64_t successes_ = 0;
};

}  // namespace sluice::gateway
