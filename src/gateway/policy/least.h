// The worker of least cost among those it has been shown; among equals each is equally likely to be the one.
#pragma once

#include <cstdint>
#include <limits>

#include "base/rng.h"

namespace sluice::gateway {

template <class Cost>
class Least {
 public:
  explicit Least(Rng& rng) : rng_(rng) {}

  // Whether it is the one now.
  bool offer(uint32_t worker, Cost cost) {
    if (cost > cost_) return false;
    ties_ = cost < cost_ ? 1 : ties_ + 1;
    cost_ = cost;
    if (ties_ > 1 && rng_.below(ties_) != 0) return false;
    worker_ = worker;
    return true;
  }
  bool found() const { return ties_ > 0; }
  uint32_t worker() const { return worker_; }
  Cost cost() const { return cost_; }

 private:
  Rng& rng_;
  // A cost that is infinite is the least of all where there is no other: whoever was shown one finds one.
  Cost cost_ = std::numeric_limits<Cost>::has_infinity ? std::numeric_limits<Cost>::infinity()
                                                       : std::numeric_limits<Cost>::max();
  uint64_t ties_ = 0;
  uint32_t worker_ = 0;
};

}  // namespace sluice::gateway
