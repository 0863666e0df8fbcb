// The usable workers in turn: one counter modulo their number, so a change of the fleet shifts the sequence.
#pragma once

#include <atomic>

#include "gateway/policy/policy.h"

namespace sluice::gateway {

class RoundRobin final : public Policy {
 public:
  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;

 private:
  mutable std::atomic<uint64_t> turn_{0};
};

}  // namespace sluice::gateway
