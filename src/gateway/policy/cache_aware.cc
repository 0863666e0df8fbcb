#include "gateway/policy/cache_aware.h"

#include <algorithm>

#include "gateway/policy/least.h"

namespace sluice::gateway {

bool CacheAware::pools_imbalanced(const FleetView& fleet) const {
  if (!needs_engine_load()) return false;
  double least = 1, most = 0;
  for (const Candidate& candidate : fleet.usable()) {
    if (candidate.load->polled_tokens.load(std::memory_order_relaxed) < 0) continue;  // it has not reported
    const double usage = candidate.load->polled_kv_usage.load(std::memory_order_relaxed);
    least = std::min(least, usage);
    most = std::max(most, usage);
  }
  return most > rules_.overload_token_usage_threshold || most - least > rules_.balance_token_usage_threshold;
}

Choice CacheAware::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  if (facts.prefix.rate() > rules_.cache_threshold) fleet.expect(facts.prefix.workers());
  const auto [lightest, least, most] = fleet.spread(rng);
  if (lightest == nullptr) return Choice::none();
  const uint32_t worker = lightest->worker;
  const auto least_loaded = [&, requests = static_cast<double>(least)](Reason reason) {
    Choice choice = Choice::of(worker, reason).with_score(worker, requests);
    choice.insert_prefix = true;
    // It may be a holder all the same.
    choice.match_rate = facts.prefix.rate_of(worker);
    return choice;
  };

  const bool imbalanced = most - least > rules_.balance_abs_threshold &&
                          static_cast<double>(most) > static_cast<double>(least) * rules_.balance_rel_threshold;
  if (imbalanced || pools_imbalanced(fleet)) return least_loaded(Reason::kImbalanced);
  if (!(facts.prefix.rate() > rules_.cache_threshold)) return least_loaded(Reason::kPrefixMiss);

  Least<int64_t> holder(rng);
  for (const uint32_t number : facts.prefix.workers()) {
    if (const Candidate* candidate = fleet.find(number); candidate != nullptr) {
      holder.offer(number, candidate->load->requests.load(std::memory_order_relaxed));
    }
  }
  if (!holder.found()) return least_loaded(Reason::kHoldersGone);
  Choice choice = Choice::of(holder.worker(), Reason::kPrefixHeld).with_score(holder.worker(), holder.cost());
  if (worker != holder.worker()) choice.with_score(worker, static_cast<double>(least));
  choice.insert_prefix = true;
  choice.match_rate = facts.prefix.rate();
  return choice;
}

}  // namespace sluice::gateway
