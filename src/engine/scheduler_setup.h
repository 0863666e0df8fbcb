// What a rank's scheduler is told of flags, of the memory plan and of the environment.
#pragma once

#include "engine/memory_plan.h"
#include "engine/options.h"
#include "engine/scheduler.h"
#include "engine/server_environment.h"
#include "models/runner.h"

namespace sluice::engine {

// What a rank knows beside them.
struct SchedulerPlace {
  bool joint_steps = false;          // its instance has several ranks
  bool keep_routed_experts = false;  // of a model that has experts
  bool publish_events = false;       // of the prefix cache
  uint64_t seed = 0;                 // of requests that bring none; ranks must not repeat each other
};

// `options` are adjusted (engine/front.h), and `plan` is made of them.
SchedulerOptions scheduler_options(const EngineOptions& options, const MemoryPlan& plan, const models::ModelInfo& model,
                                   const SchedulerTuning& tuning, const ServerEnvironment& environment,
                                   const SchedulerPlace& place);

}  // namespace sluice::engine
