#include "engine/prefill_delayer.h"

#include <algorithm>

namespace sluice::engine {

DelayOutcome PrefillDelayer::decide(const parallel::StepPlan& last) const {
  const auto has = [](int64_t bit) { return [bit](int64_t bits) { return (bits & bit) != 0; }; };
  // SGLang's rule has not this condition: where nobody decodes there is nothing that a prompt could hold up.
  if (std::ranges::none_of(last.decoding, [](int64_t sequences) { return sequences > 0; })) {
    return DelayOutcome::kNobodyDecodes;
  }
  if (std::ranges::any_of(last.prefill, has(parallel::kForcePrefill))) return DelayOutcome::kMuchRoom;
  if (std::ranges::all_of(last.prefill, has(parallel::kCanPrefill))) {
    return passes_ > 0 ? DelayOutcome::kAllCouldAtLast : DelayOutcome::kAllCould;
  }
  return passes_ + 1 < options_.max_passes ? DelayOutcome::kHeldBack : DelayOutcome::kLongEnough;
}

bool PrefillDelayer::holds_back(const parallel::StepPlan& last, TimePoint now) {
  const DelayOutcome outcome = decide(last);
  ++delays_.outcomes[static_cast<size_t>(outcome)];
  if (passes_ == 0) since_ = now;
  if (outcome == DelayOutcome::kHeldBack) {
    ++passes_;
    return true;
  }
  delays_.passes.observe(kDelayPasses, static_cast<double>(passes_));
  delays_.seconds.observe(kDelaySeconds, seconds(now - since_));
  passes_ = 0;
  return false;
}

}  // namespace sluice::engine
