// Sessions stay where they are: the routing key, else who asks, is hashed onto a ring with bounded loads; without
// either a random worker.
#pragma once

#include "gateway/policy/bounded_ring.h"

namespace sluice::gateway {

class ConsistentHashing final : public Policy {
 public:
  explicit ConsistentHashing(const GatewayOptions& options) : bound_(LoadBound::from(options)) {}

  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  bool needs_ring() const override { return true; }
  bool needs_keys() const override { return true; }
  bool takes_target() const override { return true; }

 private:
  const LoadBound bound_;
};

}  // namespace sluice::gateway
