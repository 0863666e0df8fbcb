// `sluice server` on a node other than the first: joins node 0, runs the ranks that it is told to, and says how they
// end. It answers no requests, only /health.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "base/result.h"
#include "engine/nodes/interface.h"
#include "engine/options.h"

namespace sluice::engine {

class NodeAgent {
 public:
  // Listens at --host and --port for health probes. `on_rank_line` as in FrontHooks; `interfaces` is asked anew at each
  // try to join and for each rank, by the thread that runs the agent.
  static Result<std::unique_ptr<NodeAgent>> start(const EngineOptions& options,
                                                  std::function<void(std::string_view)> on_rank_line,
                                                  InterfaceSource interfaces = network_interfaces);
  ~NodeAgent();

  uint16_t port() const;

  // The agent's life: until `stop_descriptor` is readable or node 0 ends the instance. Where node 0 is lost, the ranks
  // end and it joins again. kBadOption: node 0 refuses this node, for what the message says; kTimeout: for ten
  // minutes there was no node 0 to join, or no address of the chosen interface to join with. No rank is left.
  Result<void> run(int stop_descriptor);

 private:
  class Impl;
  explicit NodeAgent(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
