// `sluice check-cluster`: whether the hosts of an instance can be one, found out before anything is loaded. It runs on
// each of them, with the flags that the server will get; all print the same table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "engine/nodes/identity.h"
#include "engine/options.h"

namespace sluice::engine {

// One node's way to another: a TCP connection to a port that the system gave there, as ranks make them.
struct CheckedPath {
  int64_t to = 0;
  std::optional<Duration> took;  // absent: it failed
  std::string problem;
};
struct CheckedNode {
  int64_t node = 0;
  bool seen = false;
  std::string address;    // at which it is reached
  std::string interface;  // that was chosen for that; empty: none
  NodeIdentity identity;
  std::vector<CheckedPath> paths;
};

struct ClusterCheck {
  std::string table;  // for people: a row for each node, then a line for each problem
  bool passed = false;
};

// [nodes], node 0 first. `bound` is how long nodes that were not seen were waited for.
ClusterCheck judge_cluster(const std::vector<CheckedNode>& nodes, Duration bound);

// This node's part of the check. Waits at most `bound` for the others; kCancelled once `stop_descriptor` (-1: none) is
// readable. An error is what keeps this node from the others: name, address, port; what a table can show is no error.
Result<ClusterCheck> check_cluster(const EngineOptions& options, Duration bound, int stop_descriptor);

}  // namespace sluice::engine
