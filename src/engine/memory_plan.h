// How many tokens of KV cache a rank gets, and how many requests run at once (engine-reference.md 5.1). A pure function
// of what the machine and the model are.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "engine/options.h"
#include "models/runner.h"

namespace sluice::engine {

struct MemoryFacts {
  int64_t limit_bytes = 0;  // what this process and its siblings may use: the machine's memory or the cgroup's limit
  int64_t host_ranks = 1;   // ranks that share it, this one included
  bool shared_weights = false;  // they map one copy of the weights
};

// What is known before the model is loaded: the largest step.
struct StepLimits {
  int64_t max_running_requests = 0;  // asked for, or the default bound
  int64_t chunk = 0;                 // prompt tokens of a step
  int64_t max_step_tokens = 0;
};
StepLimits plan_steps(const EngineOptions& options);

struct MemoryPlan {
  int64_t max_total_tokens = 0;  // whole pages
  int64_t max_running_requests = 0;
  int64_t max_req_len = 0;  // longest sequence, prompt and output
  int64_t kv_bytes = 0;
  int64_t kept_states = 0;  // of prefixes, with lightning attention
  int64_t state_bytes = 0;  // of running requests and of those
};
// kExhausted, with the figures, when there is no room for a useful pool.
Result<MemoryPlan> plan_memory(const EngineOptions& options, const models::ModelInfo& model, const MemoryFacts& facts);

// The smaller of the machine's memory and the limits of the cgroups that this process is in (v1 and v2).
int64_t memory_limit_bytes();
// Processors that this process may use: its affinity, and the quota of its cgroup rounded up.
int64_t usable_cores();

}  // namespace sluice::engine
