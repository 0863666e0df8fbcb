// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018): the owner of a hash takes the request
// unless it has clearly more than its share, and then the next worker on the ring that has not.
#pragma once

#include <cstdint>

#include "gateway/policy/policy.h"

namespace sluice::gateway {

// A worker has too much when its requests in flight are above both: the mean, this one included, times `factor`, and
// the mean plus `margin`. The margin keeps the noise of a few requests from moving keys about.
struct LoadBound {
  double factor;
  int64_t margin;

  static LoadBound from(const GatewayOptions& options) {
    return {.factor = options.prefix_hash_load_factor, .margin = options.prefix_hash_balance_abs_threshold};
  }
};

// Reason kHashed or kHashSpilled. If all have too much, the least loaded of them.
Choice choose_on_ring(const FleetView& fleet, uint64_t position, LoadBound bound, Rng& rng);

}  // namespace sluice::gateway
