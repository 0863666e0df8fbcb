// Numbers of the scheduler's rules that no flag sets: SGLang reads them from its environment, and so does this engine.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace sluice::engine {

struct SchedulerTuning {
  // Share of their remaining output that running requests are expected to need: at first (times
  // --schedule-conservativeness, at most 1), at least (a share of that), and the decode steps in between.
  double initial_ratio = 0.7;           // SGLANG_INIT_NEW_TOKEN_RATIO
  double smallest_ratio_factor = 0.14;  // SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR
  int64_t ratio_decay_steps = 600;      // SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS
  // Tokens that each request is expected to need on top of what those that stay have made, after a retraction.
  int64_t retract_decode_steps = 20;  // SGLANG_RETRACT_DECODE_STEPS
  // Of its output a request is counted with so much at most, to be admitted.
  int64_t clip_max_new_tokens = 4096;  // SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION
  // A request that finds up to `twin_cached` tokens cached, and begins with `twin_shared` tokens as another that waits,
  // waits a round. With -1 none does.
  int64_t twin_cached = 32;  // IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD
  int64_t twin_shared = 32;  // IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD
};

// kBadOption names the variable and its range.
Result<SchedulerTuning> scheduler_tuning_from_environment();

}  // namespace sluice::engine
