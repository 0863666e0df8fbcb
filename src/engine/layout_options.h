// What the options of `sluice server` say of how the model is divided among ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/options.h"
#include "parallel/topology.h"

namespace sluice::engine {

// What DP attention and the all-to-all backends change in other options, as lines for the log: "--ep-size 1 -> 8: ...".
// Once, by the front, before anything else reads the options.
std::vector<std::string> adjust_layout(EngineOptions& options);

// The rest is of adjusted options.

// Of rank `tp_rank` of an instance.
parallel::Layout layout_of(const EngineOptions& options, int64_t tp_rank);
// Instances of the model: replicas, or one where attention groups are its data parallelism.
int64_t instance_count(const EngineOptions& options);
// Ranks of this server, and those of each host.
int64_t rank_count(const EngineOptions& options);
int64_t ranks_per_host(const EngineOptions& options);
// Servers that were started together on this host (kHostWorkersVariable of engine/rank.h), this one included.
int64_t host_workers();

}  // namespace sluice::engine
