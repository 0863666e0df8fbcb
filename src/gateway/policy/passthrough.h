// Always the first usable worker, in the order of registration: for a gateway in front of one worker.
#pragma once

#include "gateway/policy/policy.h"

namespace sluice::gateway {

class Passthrough final : public Policy {
 public:
  Choice choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& /*rng*/) const override {
    return fleet.usable().empty() ? Choice::none() : Choice::of(fleet.usable().front().worker, Reason::kFirst);
  }
  bool is_balanced() const override { return false; }
};

}  // namespace sluice::gateway
