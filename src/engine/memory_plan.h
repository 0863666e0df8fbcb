// How many tokens of KV cache a rank gets, and how many requests run at once. A pure function
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
  int64_t program_bytes = 0;    // that this process took before its model; 0: not known, and not counted
  int64_t slot_tables = 1;      // that it has; another where a leader knows what its followers have
};

// What is known before the model is loaded: the largest step.
struct StepLimits {
  int64_t max_running_requests = 0;  // asked for, or the default bound
  int64_t chunk = 0;                 // prompt tokens of a step
  int64_t max_step_tokens = 0;
};
StepLimits plan_steps(const EngineOptions& options);

inline constexpr int64_t kLeastAnswerBytes = int64_t{8} << 20, kMostAnswerBytes = int64_t{256} << 20;

struct MemoryPlan {
  int64_t max_total_tokens = 0;  // whole pages
  int64_t max_running_requests = 0;
  int64_t max_req_len = 0;  // longest sequence, prompt and output
  int64_t kv_bytes = 0;
  int64_t kept_states = 0;  // of prefixes, with lightning attention
  int64_t state_bytes = 0;  // of running requests and of those

  // What else this rank takes at most.
  int64_t weight_bytes = 0;   // its part of those that ranks share
  int64_t buffer_bytes = 0;   // of a step
  int64_t table_bytes = 0;    // of slots
  int64_t program_bytes = 0;  // and what kernels and requests take of their own
  int64_t total_bytes() const {
    return weight_bytes + kv_bytes + state_bytes + buffer_bytes + table_bytes + program_bytes;
  }
  // Beside it, of what this rank's share has left: what requests may keep for their answers, of hidden states and
  // log-probabilities. At least kLeastAnswerBytes, at most kMostAnswerBytes.
  int64_t answer_bytes = 0;
};
// kExhausted, with the figures, when there is no room for a useful pool, or when all together is more than this rank's
// share of the memory.
Result<MemoryPlan> plan_memory(const EngineOptions& options, const models::ModelInfo& model, const MemoryFacts& facts);

// Memory that this process takes now.
int64_t resident_bytes();

}  // namespace sluice::engine
