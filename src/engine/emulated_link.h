// Ranks of one machine as if a network lay between them, to try out and measure what delay and bandwidth do to a
// layout: SLUICE_EMULATED_LATENCY_MS and SLUICE_EMULATED_MB_PER_S.
#pragma once

#include <optional>

#include "base/result.h"
#include "parallel/latency.h"
#include "parallel/topology.h"

namespace sluice::engine {

// Of an instance on `nodes` hosts, within which nothing is delayed; on one host each rank counts as a host of its own.
// Absent without the variables. kBadOption names the variable and its range.
Result<std::optional<parallel::LatencyOptions>> emulated_link(const parallel::Layout& layout, int64_t nodes);

}  // namespace sluice::engine
