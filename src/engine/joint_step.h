// What groups that compute steps together tell each other so that no group's prompts hold up another's decoding: what
// each is about to do, and what follows from that for the step to come and for the one that was.
#pragma once

#include <cstdint>

#include "engine/step_times.h"
#include "parallel/step_sync.h"

namespace sluice::engine {

// Of one group, told before a step.
struct StepOutlook {
  // Of the step after it: sequences that decode, unless they end with this one, their tokens, and at which position
  // prompts go on.
  int64_t decoding = 0, context = 0, position = 0;
  // Of the step itself: StepShape::prompt_reads, and rows of logits that are wanted of prompt tokens.
  int64_t prompt_reads = 0, prompt_logits = 0;
};

// What a group knows of the step that it is to plan.
struct OtherGroups {
  int64_t decoding = 0, all_decoding = 0;  // sequences: the most of any other, and of all others
  int64_t context = 0;                     // their tokens, the most of any other
  int64_t with_prompts = 0;                // other groups
  bool expect_prompts = false;             // of this group
  int64_t position = 0;                    // at which prompts go on, the latest of any, this one included
};

// As group `group` sees the exchange `last`.
OtherGroups others_of(const parallel::StepPlan& last, int64_t group);

// What the step of the exchange `step` had, `before` being the one before it.
StepShape shape_of(const parallel::StepPlan& before, const parallel::StepPlan& step);

void tell(const StepOutlook& outlook, parallel::StepRow& row);

}  // namespace sluice::engine
