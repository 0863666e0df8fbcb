// Node 0's side of an instance on several hosts: it listens where the user said, takes in an agent (agent.h) for each
// other node, and has them start the ranks there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "engine/nodes/identity.h"
#include "engine/options.h"
#include "engine/rank.h"
#include "engine/rank_handle.h"

namespace sluice::engine {

// Any thread. A thread of its own owns the connections; it wakes once a second for signs of life.
class NodeLeader {
 public:
  // Listens at --dist-init-addr. kAlreadyExists, kInvalidArgument or kNotFound name the address, kBadOption the
  // interface that ranks are to use.
  static Result<std::unique_ptr<NodeLeader>> listen(const EngineOptions& options, NodeIdentity own);
  // Agents end with it. No handle is left by then.
  ~NodeLeader();

  // Of this host, as a number, for its ranks and those of others: of --gloo-socket-ifname, or the first of those that
  // --dist-init-addr stands for.
  const std::string& address() const;
  // Until all nodes have joined: kTimeout names those that have not; kCancelled once `stop_descriptor` (-1: none) is
  // readable. What refused a node is in the log.
  Result<void> wait_for_all(Duration bound, int stop_descriptor) const;
  // "node 1, node 3": those that are not there now.
  std::string absent() const;

  // Starts the rank on that node, whose agent adds what it knows better: where the model is, threads, its address.
  // kUnavailable where the node is not there.
  Result<std::unique_ptr<RankHandle>> start_rank(int64_t node, const RankSpec& spec);

 private:
  class Impl;
  explicit NodeLeader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
