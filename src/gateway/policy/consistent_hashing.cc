#include "gateway/policy/consistent_hashing.h"

namespace sluice::gateway {

Choice ConsistentHashing::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();
  const std::string_view key = facts.routing_key.empty() ? facts.identity : facts.routing_key;
  if (key.empty()) return Choice::of(usable[rng.below(usable.size())].worker, Reason::kRandom);
  return choose_on_ring(fleet, routing::HashRing::position(key), bound_, rng);
}

}  // namespace sluice::gateway
