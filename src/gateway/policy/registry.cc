#include "gateway/policy/cache_aware.h"
#include "gateway/policy/consistent_hashing.h"
#include "gateway/policy/least_load.h"
#include "gateway/policy/manual.h"
#include "gateway/policy/min_cost.h"
#include "gateway/policy/passthrough.h"
#include "gateway/policy/policy.h"
#include "gateway/policy/power_of_two.h"
#include "gateway/policy/prefix_hash.h"
#include "gateway/policy/random.h"
#include "gateway/policy/round_robin.h"

namespace sluice::gateway {
namespace {

template <class P>
std::unique_ptr<Policy> make(const GatewayOptions& options) {
  if constexpr (std::is_constructible_v<P, const GatewayOptions&>) {
    return std::make_unique<P>(options);
  } else {
    return std::make_unique<P>();
  }
}

constexpr PolicyRow kPolicies[] = {
    {"cache_aware", make<CacheAware>, "longest cached prefix while the fleet is in balance, else the least loaded"},
    {"consistent_hashing", make<ConsistentHashing>,
     "the routing key, else who asks, hashed onto a ring with bounded loads"},
    {"least_load", make<LeastLoad>, "the least queue over throughput plus KV pressure, as the engines report them"},
    {"manual", make<Manual>, "a routing key keeps its worker; --assignment-mode says how it gets one"},
    {"min_cost", make<MinCost>, "the least sum of queued prefill, prefill that is not cached, and KV pressure"},
    {"passthrough", make<Passthrough>, "the first usable worker"},
    {"power_of_two", make<PowerOfTwo>, "two random draws, the one with less work left wins"},
    {"prefix_hash", make<PrefixHash>, "the beginning of the prompt hashed onto a ring with bounded loads"},
    {"random", make<Random>, "uniform over the usable workers"},
    {"round_robin", make<RoundRobin>, "the usable workers in turn"},
};

}  // namespace

std::span<const PolicyRow> policies() { return kPolicies; }

const PolicyRow* find_policy(std::string_view name) {
  for (const PolicyRow& row : kPolicies) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

std::unique_ptr<Policy> make_policy(const GatewayOptions& options) {
  auto policy = find_policy(options.policy)->make(options);
  // Manual and consistent hashing go by the key themselves.
  if (!options.routing_key_override || options.policy == "manual" || options.policy == "consistent_hashing")
    return policy;
  return std::make_unique<Manual>(std::move(policy), std::chrono::seconds(options.max_idle_secs));
}

std::string_view to_string(Reason reason) {
  switch (reason) {
    case Reason::kNoUsableWorker:
      return "no_usable_worker";
    case Reason::kOnlyCandidate:
      return "only_candidate";
    case Reason::kRandom:
      return "random";
    case Reason::kNextInTurn:
      return "next_in_turn";
    case Reason::kLessWork:
      return "less_work";
    case Reason::kPrefixHeld:
      return "prefix_held";
    case Reason::kImbalanced:
      return "imbalanced";
    case Reason::kPrefixMiss:
      return "prefix_miss";
    case Reason::kHoldersGone:
      return "holders_gone";
    case Reason::kFirst:
      return "first";
    case Reason::kLeastCost:
      return "least_cost";
    case Reason::kHoldersBusy:
      return "holders_busy";
    case Reason::kTarget:
      return "target";
    case Reason::kRoutingKey:
      return "routing_key";
    case Reason::kKeyAssigned:
      return "key_assigned";
    case Reason::kKeyMoved:
      return "key_moved";
    case Reason::kHashed:
      return "hashed";
    case Reason::kHashSpilled:
      return "hash_spilled";
    case Reason::kKeepsResponse:
      return "keeps_response";
  }
  return "unknown";
}

}  // namespace sluice::gateway
