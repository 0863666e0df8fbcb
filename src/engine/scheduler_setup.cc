#include "engine/scheduler_setup.h"

namespace sluice::engine {
namespace {

RadixOptions radix_options(const EngineOptions& options, const MemoryPlan& plan, const SchedulerPlace& place) {
  return {.eviction = options.radix_eviction_policy == "lfu" ? RadixOptions::Eviction::kLeastFrequentlyUsed
                                                             : RadixOptions::Eviction::kLeastRecentlyUsed,
          .record_events = place.publish_events,
          .first_state_row = static_cast<int32_t>(plan.max_running_requests),
          .state_rows = static_cast<int32_t>(plan.kept_states)};
}

SchedulerOptions::Priorities priorities(const EngineOptions& options) {
  return {.enabled = options.enable_priority_scheduling || options.schedule_policy == "priority",
          .low_first = options.schedule_low_priority_values_first,
          .refused_if_disabled = options.abort_on_priority_when_disabled,
          .preemption_threshold = options.priority_scheduling_preemption_threshold};
}

}  // namespace

SchedulerOptions scheduler_options(const EngineOptions& options, const MemoryPlan& plan, const models::ModelInfo& model,
                                   const SchedulerTuning& tuning, const ServerEnvironment& environment,
                                   const SchedulerPlace& place) {
  // Prefixes of a model with states are of use only where their states are kept.
  const bool has_room_for_states = model.state_bytes_per_sequence == 0 || plan.kept_states > 0;
  return {.kv_slots = plan.max_total_tokens + options.page_size,
          .page_size = options.page_size,
          .max_running_requests = plan.max_running_requests,
          .max_queued_requests = options.max_queued_requests,
          .chunked_prefill_size = plan_steps(options).chunk,
          .max_prefill_tokens = options.max_prefill_tokens,
          .prefill_max_requests = options.prefill_max_requests,
          .context_length = model.context_length,
          .policy = find_schedule_policy(options.schedule_policy),
          .prefix_cache = !options.disable_radix_cache && has_room_for_states,
          .radix = radix_options(options, plan, place),
          .priorities = priorities(options),
          .mixed_chunk = options.enable_mixed_chunk,
          .mixed_chunk_gap = options.mixed_chunk_gap,
          .joint_steps = place.joint_steps,
          .conservativeness = options.schedule_conservativeness,
          .tuning = tuning,
          .seed = place.seed,
          .keep_routed_experts = place.keep_routed_experts,
          .most_answer_bytes = plan.answer_bytes,
          .waiting_timeout = environment.waiting_timeout,
          .running_timeout = environment.running_timeout};
}

}  // namespace sluice::engine
