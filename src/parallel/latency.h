// Any communicator as if its ranks were on other hosts: for tests and measurements of what delay and bandwidth do,
// where there is one host.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace sluice::parallel {

struct LatencyOptions {
  Duration latency{};                   // of a call in which ranks of several hosts take part
  double bytes_per_second = 0;          // at which a rank gets what comes from other hosts; 0 = no limit
  std::vector<int> hosts;               // of each rank of the world; empty = each rank has a host of its own
  std::function<void(Duration)> sleep;  // how to wait; null = really
};

// Groups split from it are delayed likewise.
std::unique_ptr<Communicator> add_latency(std::unique_ptr<Communicator> inner, LatencyOptions options);

}  // namespace sluice::parallel
