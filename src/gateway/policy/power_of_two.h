// Draws two usable workers at random and takes the one with less work left. The second draw removes most of the
// imbalance of a purely random choice, at a cost that is the same for 8 workers and for 10,000 (Mitzenmacher 2001).
#pragma once

#include "gateway/policy/policy.h"

namespace sluice::gateway {

// Work left = tokens at the engine's last load report plus tokens sent to it since; where one of the two never
// reported, both are compared by requests in flight.
class PowerOfTwo final : public Policy {
 public:
  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  double weigh(const Candidate& candidate, const RequestFacts& facts) const override;
  bool needs_all() const override { return false; }
  bool needs_engine_load() const override { return true; }
};

}  // namespace sluice::gateway
