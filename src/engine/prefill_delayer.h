// Aligns the prefills of attention groups that step together (--enable-prefill-delayer): a
// step lasts as long as its longest part, so prompts of all groups in one step hold up decoding once instead of once
// each. Every group decides by the last exchange of rows, which is the same for all, so groups that waited for each
// other begin in the same step.
#pragma once

#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "engine/messages.h"
#include "parallel/step_sync.h"

namespace sluice::engine {

struct PrefillDelayerOptions {
  bool enabled = false;
  int64_t max_passes = 30;                          // steps that a prompt waits for are fewer
  std::optional<double> token_usage_low_watermark;  // a group that uses less of its KV pool keeps nobody waiting
};

// Used by one thread.
class PrefillDelayer {
 public:
  explicit PrefillDelayer(const PrefillDelayerOptions& options) : options_(options) {}

  // Of a group that could begin a prompt in the step to come: true = not in this one. `last` is the exchange before
  // it.
  bool holds_back(const parallel::StepPlan& last, TimePoint now);
  const PrefillDelays& delays() const { return delays_; }
  // Whether this group lets prompts begin everywhere: it has one and much room.
  bool forces(bool can_prefill, double token_usage) const {
    return can_prefill && options_.token_usage_low_watermark && token_usage < *options_.token_usage_low_watermark;
  }

 private:
  DelayOutcome decide(const parallel::StepPlan& last) const;

  const PrefillDelayerOptions options_;
  int64_t passes_ = 0;  // that the prompt has waited
  TimePoint since_{};   // it waits, if it does
  PrefillDelays delays_;
};

}  // namespace sluice::engine
