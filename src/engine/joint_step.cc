#include "engine/joint_step.h"

#include <algorithm>

namespace sluice::engine {

OtherGroups others_of(const parallel::StepPlan& last, int64_t group) {
  OtherGroups others;
  for (size_t i = 0; i < last.prefill.size(); ++i) {
    const bool has_prompts = (last.prefill[i] & parallel::kCanPrefill) != 0;
    if (has_prompts) others.position = std::max(others.position, last.position[i]);
    if (std::cmp_equal(i, group)) {
      others.expect_prompts = has_prompts;
      continue;
    }
    others.with_prompts += has_prompts;
    others.decoding = std::max(others.decoding, last.decoding[i]);
    others.all_decoding += last.decoding[i];
    others.context = std::max(others.context, last.context[i]);
  }
  // Nobody else has to know.
  others.expect_prompts |= last.prefill.size() == 1;
  return others;
}

StepShape shape_of(const parallel::StepPlan& before, const parallel::StepPlan& step) {
  StepShape shape;
  for (size_t i = 0; i < step.group_tokens.size(); ++i) {
    // Of those who could decode, some may have ended.
    const int64_t could = i < before.decoding.size() ? before.decoding[i] : 0;
    const int64_t decode = std::min(could, step.group_tokens[i]);
    shape.decoding = std::max(shape.decoding, decode);
    shape.all_decoding += decode;
    if (decode > 0) shape.context = std::max(shape.context, before.context[i] / could * decode);
    const int64_t prompt = step.group_tokens[i] - decode + step.prompt_logits[i];
    shape.prompt_tokens = std::max(shape.prompt_tokens, prompt);
    shape.all_prompt_tokens += prompt;
    shape.prompt_reads = std::max(shape.prompt_reads, step.prompt_reads[i]);
  }
  return shape;
}

void tell(const StepOutlook& outlook, parallel::StepRow& row) {
  row.decoding = outlook.decoding;
  row.context = outlook.context;
  row.position = outlook.position;
  row.prompt_reads = outlook.prompt_reads;
  row.prompt_logits = outlook.prompt_logits;
}

}  // namespace sluice::engine
