// Uniform over the usable workers.
#pragma once

#include "gateway/policy/policy.h"

namespace sluice::gateway {

class Random final : public Policy {
 public:
  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  bool needs_all() const override { return false; }
};

}  // namespace sluice::gateway
