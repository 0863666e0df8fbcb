#include "gateway/policy/manual.h"

#include "gateway/policy/least.h"

namespace sluice::gateway {
namespace {

Manual::Assignment assignment_of(std::string_view mode) {
  if (mode == "min_load") return Manual::Assignment::kMinLoad;
  if (mode == "min_group") return Manual::Assignment::kMinGroup;
  return Manual::Assignment::kRandom;
}

}  // namespace

Manual::Manual(const GatewayOptions& options)
    : Manual(assignment_of(options.assignment_mode), std::chrono::seconds(options.max_idle_secs)) {}

double Manual::weigh(const Candidate& candidate, const RequestFacts& facts) const {
  if (otherwise_) return otherwise_->weigh(candidate, facts);
  if (assignment_ == Assignment::kMinGroup) return static_cast<double>(keys_.keys_of(candidate.worker));
  return Policy::weigh(candidate, facts);
}

Choice Manual::assign(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  if (otherwise_) return otherwise_->choose(fleet, facts, rng);
  if (assignment_ == Assignment::kRandom) {
    const Candidate* candidate = fleet.any(rng);
    return candidate == nullptr ? Choice::none() : Choice::of(candidate->worker, Reason::kRandom);
  }
  if (assignment_ == Assignment::kMinLoad) {
    const auto [lightest, requests, most] = fleet.spread(rng);
    if (lightest == nullptr) return Choice::none();
    return Choice::of(lightest->worker, Reason::kLeastCost).with_score(lightest->worker, static_cast<double>(requests));
  }
  Least<int64_t> least(rng);
  for (const Candidate& candidate : fleet.usable()) least.offer(candidate.worker, keys_.keys_of(candidate.worker));
  if (!least.found()) return Choice::none();
  return Choice::of(least.worker(), Reason::kLeastCost).with_score(least.worker(), static_cast<double>(least.cost()));
}

Choice Manual::choose(const FleetView& fleet, const RequestFacts& facts, Rng& rng) const {
  if (facts.routing_key.empty()) return assign(fleet, facts, rng);
  const uint32_t known =
      keys_.find(facts.routing_key, facts.now, [&](uint32_t worker) { return fleet.find(worker) != nullptr; });
  if (known < RoutingKeys::kNew) {
    Choice choice = Choice::of(known, Reason::kRoutingKey);
    if (needs_prefix()) {
      choice.insert_prefix = true;
      choice.match_rate = facts.prefix.rate_of(known);
    }
    return choice;
  }
  Choice choice = assign(fleet, facts, rng);
  if (choice.worker) {
    choice.reason = known == RoutingKeys::kNew ? Reason::kKeyAssigned : Reason::kKeyMoved;
    keys_.assign(facts.routing_key, *choice.worker, facts.now);
  }
  return choice;
}

}  // namespace sluice::gateway
