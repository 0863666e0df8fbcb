// The usable workers in turn: one counter modulo their number, so a change of the fleet shifts the sequence. Of many,
// those that may not be used have their turn all the same, and are passed over.
#pragma once

#include <atomic>

#include "gateway/policy/policy.h"

namespace sluice::gateway {

class RoundRobin final : public Policy {
 public:
  Choice choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const override;
  bool needs_all() const override { return false; }

 private:
  mutable std::atomic<uint64_t> turn_{0};
};

}  // namespace sluice::gateway
