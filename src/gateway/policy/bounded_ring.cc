#include "gateway/policy/bounded_ring.h"

#include "base/check.h"
#include "gateway/policy/least.h"

namespace sluice::gateway {

Choice choose_on_ring(const FleetView& fleet, uint64_t position, LoadBound bound, Rng& rng) {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();
  SLUICE_CHECK(fleet.ring() != nullptr, "a policy that hashes was given no ring");

  const auto requests_of = [](const Candidate& candidate) {
    return candidate.load->requests.load(std::memory_order_relaxed);
  };
  int64_t total = 0;
  for (const Candidate& candidate : usable) total += requests_of(candidate);
  const double count = static_cast<double>(usable.size());
  const double share = static_cast<double>(total + 1) / count * bound.factor;
  const double margin = static_cast<double>(total) / count + static_cast<double>(bound.margin);
  const auto has_too_much = [&](const Candidate& candidate) {
    const auto requests = static_cast<double>(requests_of(candidate));
    return requests > share && requests > margin;
  };

  Reason reason = Reason::kHashed;
  const Candidate* found = nullptr;
  fleet.ring()->walk(position, [&](uint32_t worker) {
    const Candidate* candidate = fleet.find(worker);
    if (candidate == nullptr) return false;
    if (has_too_much(*candidate)) {
      reason = Reason::kHashSpilled;
      return false;
    }
    found = candidate;
    return true;
  });
  if (found != nullptr) return Choice::of(found->worker, reason).with_score(found->worker, requests_of(*found));

  Least<int64_t> least(rng);
  for (const Candidate& candidate : usable) least.offer(candidate.worker, requests_of(candidate));
  return Choice::of(least.worker(), Reason::kHashSpilled).with_score(least.worker(), least.cost());
}

}  // namespace sluice::gateway
