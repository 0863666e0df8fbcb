#include "gateway/policy/min_cost.h"

#include <algorithm>
#include <array>
#include <limits>

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

double cost(const Candidate& candidate, const RequestFacts& facts, const routing::PrefillCost& usual) {
  const WorkerLoad& load = *candidate.load;
  const double matched_share = facts.prefix.rate_of(candidate.worker);
  const double cached = matched_share > 0 ? load.belief.share() * matched_share : 0;
  const double tokens = static_cast<double>(facts.prompt_tokens) * (1 - cached);
  const bool stranger = usual.per_token > 0 && !load.prefill.known();
  const routing::PrefillCost prefill = stranger ? usual : load.prefill.cost();
  return seconds(load.prefill.wait(facts.now)) + (1 + kPushedOut) * prefill.of(tokens) +
         kv_penalty(load) * prefill.of(static_cast<double>(facts.prompt_tokens));
}

}  // namespace

double MinCost::weigh(const Candidate& candidate, const RequestFacts& facts) const {
  return cost(candidate, facts, usual());
}

Choice MinCost::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  std::array<const Candidate*, FleetView::kShortList> list;
  const size_t size = fleet.is_many() ? fleet.short_list(facts.prefix, list, rng) : fleet.usable().size();
  if (size == 0) return Choice::none();
  const auto candidate = [&](size_t i) -> const Candidate& { return fleet.is_many() ? *list[i] : fleet.usable()[i]; };
  // Only where a long list stands in for a view of many is a cost worked out twice.
  std::array<double, FleetView::kShortList> costs;
  const auto cost_of = [&, usual = usual()](size_t i) { return cost(candidate(i), facts, usual); };
  double least = std::numeric_limits<double>::max();
  size_t cheapest = 0;
  for (size_t i = 0; i < size; ++i) {
    const double its = cost_of(i);
    if (i < costs.size()) costs[i] = its;
    if (its >= least) continue;
    least = its;
    cheapest = i;
  }
  // Of those that cost as good as the same, the one with fewest requests.
  const double bound = least + std::max(kAlike, least * kAlikeShare);
  Least<int64_t> lightest(rng);
  double price = 0;
  const WorkerLoad* chosen = nullptr;
  for (size_t i = 0; i < size; ++i) {
    const double its = i == cheapest ? least : i < costs.size() ? costs[i] : cost_of(i);
    if (its > bound) continue;
    const bool taken = lightest.offer(candidate(i).worker, candidate(i).load->requests.load(std::memory_order_relaxed));
    if (!taken) continue;
    price = its;
    chosen = candidate(i).load;
  }
  if (chosen->prefill.known()) {
    const routing::PrefillCost its = chosen->prefill.cost();
    per_request_.store(its.per_request, std::memory_order_relaxed);
    per_token_.store(its.per_token, std::memory_order_relaxed);
  }
  const uint32_t worker = lightest.worker();
  const double rate = facts.prefix.rate_of(worker);
  Choice choice = Choice::of(worker, rate > 0 ? Reason::kPrefixHeld : Reason::kLeastCost).with_score(worker, price);
  choice.insert_prefix = true;
  choice.match_rate = rate;
  return choice;
}

}  // namespace sluice::gateway
