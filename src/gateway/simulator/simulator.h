// Policies in virtual time: requests of a workload are routed by a policy, with the gateway's own loads, leases and
// prefix index, to simulated workers. It is how policies are tuned and compared; nothing of it runs in the gateway.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/options.h"
#include "gateway/simulator/workload.h"
#include "testing/cache_worker.h"

namespace sluice::gateway {

// A request that has been answered.
struct SimulatedAnswer {
  uint32_t worker = 0;
  Duration sent{0};
  double believed = 0, cached = 0;  // share of the prompt that the gateway believed to be cached, and that was
};

struct SimulationRules {
  int64_t workers = 4;
  testing::CacheWorkerRules worker;
  Duration decode = std::chrono::milliseconds(100);
  int64_t concurrency = 0;  // closed loop of so many; 0 = requests come when the workload says
  Duration warm_up = std::chrono::seconds(2);
  Duration duration = std::chrono::seconds(30);  // measured, after the warm-up
  Duration last_joins{0};                        // the last worker may be used from then on
  bool streamed = false;                         // the gateway sees first tokens
  bool work_apart = false;                       // the result has it; each choice then looks at each worker
  // Load reports arrive so long after the question, the half to three halves of it; those that are asked for after
  // `reports_until` fail.
  Duration report_delay{0};
  Duration reports_until = Duration::max();
  // A cache is emptied behind the gateway's back.
  struct Flush {
    Duration at{0};
    uint32_t worker = 0;
  };
  std::optional<Flush> flush;
  std::function<void(const SimulatedAnswer&)> on_answer;  // of every policy but the oracle; may be empty
  uint64_t seed = 1;
};

// Of the requests that ended after the warm-up.
struct SimulationResult {
  std::string policy;
  int64_t requests = 0;
  double requests_per_s = 0;
  double hit_rate = 0;                      // cached tokens of the workers over prompt tokens
  double predicted_hit_rate = 0;            // what the gateway believed
  double latency_p50 = 0, latency_p99 = 0;  // seconds
  double ttft_p50 = 0, ttft_p99 = 0;
  double imbalance = 0;   // requests of the busiest worker over the mean
  double most_apart = 0;  // requests in flight at two workers, on average over the moments of a choice
  // By how much, in seconds, the time differs that two workers need for the prompts that they have: on average over the
  // moments of a choice, and ever. 0 without SimulationRules::work_apart.
  double work_apart = 0, work_apart_most = 0;
  int64_t miscounted = 0;  // requests that the gateway's loads count at the end and no worker has, or the reverse
};

// The name that stands for the choice of somebody who sees the workers' caches and queues: the least true cost.
inline constexpr std::string_view kOracle = "oracle";

// Tokens of an answer of which the workload does not say how many, as far as the gateway can see. What decoding takes
// is set by itself.
inline constexpr int64_t kSimulatedTokens = 16;

// The value below which `share` of them lie; 0 of none. Reorders them.
double quantile(std::vector<double>& values, double share);

// `options` names the policy and its flags; `policy` = kOracle overrules it. A function of its arguments.
SimulationResult simulate(const SimulationRules& rules, const std::string& policy, const GatewayOptions& options,
                          Workload& workload);

}  // namespace sluice::gateway
