#include "gateway/policy/cache_aware.h"
#include "gateway/policy/policy.h"
#include "gateway/policy/power_of_two.h"
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
    {"power_of_two", make<PowerOfTwo>, "two random draws, the one with less work left wins"},
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
  }
  return "unknown";
}

}  // namespace sluice::gateway
