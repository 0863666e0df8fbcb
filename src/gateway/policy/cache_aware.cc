#include "gateway/policy/cache_aware.h"

#include <algorithm>

#include "gateway/policy/least.h"

namespace sluice::gateway {
bool CacheAware::pools_imbalanced(std::span<const Candidate> usable) const {
  if (!needs_engine_load()) return false;
  double least = 1, most = 0;
  for (const Candidate& candidate : usable) {
    if (candidate.load->polled_tokens.load(std::memory_order_relaxed) < 0) continue;  // it has not reported
    const double usage = candidate.load->polled_kv_usage.load(std::memory_order_relaxed);
    least = std::min(least, usage);
    most = std::max(most, usage);
  }
  return most > rules_.overload_token_usage_threshold || most - least > rules_.balance_token_usage_threshold;
}

Choice CacheAware::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();

  Least<int64_t> lightest(rng);
  int64_t most = 0;
  for (const Candidate& candidate : usable) {
    const int64_t requests = candidate.load->requests.load(std::memory_order_relaxed);
    lightest.offer(candidate.worker, requests);
    most = std::max(most, requests);
  }
  const auto least_loaded = [&](Reason reason) {
    Choice choice = Choice::of(lightest.worker(), reason).with_score(lightest.worker(), lightest.cost());
    choice.insert_prefix = true;
    // It may be a holder all the same.
    choice.match_rate = facts.prefix.rate_of(lightest.worker());
    return choice;
  };

  const int64_t least = lightest.cost();
  const bool imbalanced = most - least > rules_.balance_abs_threshold &&
                          static_cast<double>(most) > static_cast<double>(least) * rules_.balance_rel_threshold;
  if (imbalanced || pools_imbalanced(usable)) return least_loaded(Reason::kImbalanced);
  if (!(facts.prefix.rate() > rules_.cache_threshold)) return least_loaded(Reason::kPrefixMiss);

  Least<int64_t> holder(rng);
  for (const uint32_t worker : facts.prefix.workers()) {
    if (const Candidate* candidate = fleet.find(worker); candidate != nullptr) {
      holder.offer(worker, candidate->load->requests.load(std::memory_order_relaxed));
    }
  }
  if (!holder.found()) return least_loaded(Reason::kHoldersGone);
  Choice choice = Choice::of(holder.worker(), Reason::kPrefixHeld).with_score(holder.worker(), holder.cost());
  if (lightest.worker() != holder.worker()) choice.with_score(lightest.worker(), lightest.cost());
  choice.insert_prefix = true;
  choice.match_rate = facts.prefix.rate();
  return choice;
}

}  // namespace sluice::gateway
