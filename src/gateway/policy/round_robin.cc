#include "gateway/policy/round_robin.h"

namespace sluice::gateway {

Choice RoundRobin::choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& /*rng*/) const {
  const Candidate* candidate = fleet.in_turn(turn_);
  return candidate == nullptr ? Choice::none() : Choice::of(candidate->worker, Reason::kNextInTurn);
}

}  // namespace sluice::gateway
