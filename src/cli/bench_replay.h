// The workloads of `sluice bench policy` over sockets: sent to a running gateway whose workers are those of
// `sluice bench worker --cache-simulation`, and measured as the simulator measures.
#pragma once

#include <string>

#include "base/result.h"
#include "bench/api.h"
#include "gateway/simulator/simulator.h"
#include "net/http.h"

namespace sluice::cli {

struct ReplayOptions {
  net::Url url;
  bench::Api api = bench::Api::kGenerate;
  std::string model;  // may be empty for kGenerate
};

struct ReplayResult {
  gateway::SimulationResult figures;  // what cannot be seen from here is NaN
  size_t failed = 0;
  std::string error;  // of the first that failed
};

// Takes as long as the rules say, in real time. Requests under way at the end are cut off and in no figure. Holds all
// prompts of the run in memory. kInvalidArgument: a closed loop in which nothing takes time.
Result<ReplayResult> replay(const ReplayOptions& options, const gateway::SimulationRules& rules,
                            gateway::Workload& workload);

// How long after the one before it each of the first requests of a closed loop begins: in the order of the workload, as
// in the simulator. All at once they would reach the gateway in any order, and where a prefix is first decides for long
// how evenly the workers share them. A tenth of the warm-up in all at most, without one of the run.
Duration first_requests_apart(const gateway::SimulationRules& rules);

// Empties the caches of all workers through the gateway, which may still have to notice that clients have left.
Result<void> flush_caches(const net::Url& url);

}  // namespace sluice::cli
