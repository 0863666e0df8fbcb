#include "gateway/policy/random.h"

namespace sluice::gateway {

Choice Random::choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& rng) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();
  return Choice::of(usable[rng.below(usable.size())].worker, Reason::kRandom);
}

}  // namespace sluice::gateway
