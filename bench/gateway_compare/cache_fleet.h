// The workers of the policy simulator (testing/cache_worker.h) in real time and behind sockets, so that any gateway can
// be held to what its policy does for their prefix caches. `sluice bench worker --cache-simulation` is the same worker
// as a process of its own; here all are in the process of the load, for the oracle sees into them and takes its place
// in a queue at the moment of its choice, not when the request has got there.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "gateway/simulator/simulator.h"
#include "http_load.h"
#include "net/loop.h"

namespace sluice::compare {

struct FleetRules {
  gateway::SimulationRules simulation;
  // They tell the tokens of a prompt, as vLLM's do at /v1/chat/completions/render and SGLang's do not.
  bool renders = false;
};

struct FleetCounts {
  int64_t requests = 0;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  std::vector<int64_t> by_worker;  // requests
};

// Any thread, unless said otherwise.
class CacheFleet {
 public:
  static Result<std::unique_ptr<CacheFleet>> start(const FleetRules& rules);
  ~CacheFleet();

  std::vector<uint16_t> ports() const;
  // Of answers that ended since the last reset.
  FleetCounts counts() const;
  void reset_counts();

  // The choice of somebody who sees the caches and queues: the worker where the prompt will be computed first. The
  // request is in that worker's queue when this returns; it must follow, with the headers.
  Routed choose_best(const std::string& text);

 private:
  class Node;
  struct Shared;
  CacheFleet();

  std::unique_ptr<Shared> shared_;
  std::unique_ptr<net::LoopGroup> loops_;
  std::vector<std::unique_ptr<Node>> nodes_;
};

}  // namespace sluice::compare
