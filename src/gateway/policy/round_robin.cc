#include "gateway/policy/round_robin.h"

namespace sluice::gateway {

Choice RoundRobin::choose(const FleetView& fleet, const RequestFacts& /*facts*/, Rng& /*rng*/) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();
  const uint64_t turn = turn_.fetch_add(1, std::memory_order_relaxed);
  return Choice::of(usable[turn % usable.size()].worker, Reason::kNextInTurn);
}

}  // namespace sluice::gateway
