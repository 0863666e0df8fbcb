#include "gateway/policy/min_cost.h"

#include <algorithm>

#include "gateway/policy/least.h"

namespace sluice::gateway {
namespace {

// Costs that differ by less say nothing: what is learned of two equal workers differs by as much.
constexpr double kAlike = 0.0005;     // seconds ...
constexpr double kAlikeShare = 0.02;  // ... or this part of the least

// What is computed pushes as much out of a full cache, and a part of that has to be computed again for somebody else.
// Without it a fleet whose caches are full can fall into making copies of everything.
constexpr double kPushedOut = 0.25;

// What waits for KV blocks waits for others to finish. In units of the prompt's own prefill: next to nothing while half
// of the pool is free, 1/8 at half, 6.6 at nine tenths, 10 at most: reports are seconds old, and may be of a crowd that
// has gone.
double kv_penalty(const WorkerLoad& load) {
  if (load.polled_tokens.load(std::memory_order_relaxed) < 0) return 0;
  const double usage = std::clamp(load.polled_kv_usage.load(std::memory_order_relaxed), 0.0, 0.999);
  return std::min(10.0, usage * usage * usage * usage / (1 - usage));
}

double cost(const WorkerLoad& load, const RequestFacts& facts, double matched_share) {
  const double cached = load.belief.share() * matched_share;
  const double tokens = static_cast<double>(facts.prompt_tokens) * (1 - cached);
  const Duration service = load.prefill.service(tokens);
  const Duration whole = load.prefill.service(static_cast<double>(facts.prompt_tokens));
  return seconds(load.prefill.wait(facts.now)) + (1 + kPushedOut) * seconds(service) +
         kv_penalty(load) * seconds(whole);
}

}  // namespace

Choice MinCost::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  const auto usable = fleet.usable();
  if (usable.empty()) return Choice::none();
  const routing::PrefixMatch& prefix = facts.prefix;
  double least = std::numeric_limits<double>::max();
  for (const Candidate& candidate : usable) {
    least = std::min(least, cost(*candidate.load, facts, prefix.rate_of(candidate.worker)));
  }
  // Of those that cost as good as the same, the one with fewest requests.
  const double bound = least + std::max(kAlike, least * kAlikeShare);
  Least<int64_t> lightest(rng);
  for (const Candidate& candidate : usable) {
    if (cost(*candidate.load, facts, prefix.rate_of(candidate.worker)) > bound) continue;
    lightest.offer(candidate.worker, candidate.load->requests.load(std::memory_order_relaxed));
  }
  const uint32_t worker = lightest.worker();
  Choice choice = Choice::of(worker, prefix.rate_of(worker) > 0 ? Reason::kPrefixHeld : Reason::kLeastCost);
  choice.with_score(worker, cost(*fleet.find(worker)->load, facts, prefix.rate_of(worker)));
  choice.insert_prefix = true;
  choice.match_rate = prefix.rate_of(worker);
  return choice;
}

}  // namespace sluice::gateway
