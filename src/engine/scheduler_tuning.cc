#include "engine/scheduler_tuning.h"

#include "engine/environment.h"

namespace sluice::engine {

Result<SchedulerTuning> scheduler_tuning_from_environment() {
  constexpr int64_t kMost = 1'000'000'000;
  SchedulerTuning out;
  SLUICE_TRY_VOID(read_variable("SGLANG_INIT_NEW_TOKEN_RATIO", 0.0, 1.0, out.initial_ratio));
  SLUICE_TRY_VOID(read_variable("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", 0.0, 1.0, out.smallest_ratio_factor));
  SLUICE_TRY_VOID(read_variable<int64_t>("SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS", 1, kMost, out.ratio_decay_steps));
  SLUICE_TRY_VOID(read_variable<int64_t>("SGLANG_RETRACT_DECODE_STEPS", 0, kMost, out.retract_decode_steps));
  SLUICE_TRY_VOID(read_variable<int64_t>("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", 1, kMost, out.clip_max_new_tokens));
  SLUICE_TRY_VOID(read_variable<int64_t>("IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD", -1, kMost, out.twin_cached));
  SLUICE_TRY_VOID(read_variable<int64_t>("IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD", 1, kMost, out.twin_shared));
  return out;
}

}  // namespace sluice::engine
