#include "gateway/policy/random.h"

namespace sluice::gateway {

Choice Random::choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& rng) const {
  const Candidate* candidate = fleet.any(rng);
  return candidate == nullptr ? Choice::none() : Choice::of(candidate->worker, Reason::kRandom);
}

}  // namespace sluice::gateway
