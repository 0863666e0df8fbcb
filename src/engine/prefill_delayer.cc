#include "engine/prefill_delayer.h"

#include <algorithm>

namespace sluice::engine {

bool PrefillDelayer::holds_back(const parallel::StepPlan& last) {
  const auto has = [&](int64_t bit) { return [bit](int64_t bits) { return (bits & bit) != 0; }; };
  // SGLang's rule has not the first condition: where nobody decodes there is nothing that a prompt could hold up.
  const bool decoding = std::ranges::any_of(last.decoding, [](int64_t sequences) { return sequences > 0; });
  const bool waits = decoding && std::ranges::none_of(last.prefill, has(parallel::kForcePrefill)) &&
                     !std::ranges::all_of(last.prefill, has(parallel::kCanPrefill)) &&
                     passes_ + 1 < options_.max_passes;
  passes_ = waits ? passes_ + 1 : 0;
  return waits;
}

}  // namespace sluice::engine
