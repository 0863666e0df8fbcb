#include "gateway/policy_branch.h"

namespace sluice::gateway {
namespace {

std::string_view manual_branch(Reason reason) {
  switch (reason) {
    case Reason::kRoutingKey:
      return "occupied_hit";
    case Reason::kKeyMoved:
      return "occupied_miss";
    case Reason::kKeyAssigned:
      return "vacant";
    default:
      return "no_routing_id";
  }
}

std::string_view cache_aware_branch(Reason reason) {
  switch (reason) {
    case Reason::kPrefixHeld:
      return "tree_match";
    case Reason::kImbalanced:
      return "imbalanced";
    case Reason::kPrefixMiss:
      return "miss";
    case Reason::kHoldersGone:
      return "fallback";
    default:
      return "";
  }
}

std::string_view consistent_hashing_branch(Reason reason) {
  switch (reason) {
    case Reason::kTarget:
      return "target_worker_hit";
    case Reason::kNoUsableWorker:
      return "target_worker_miss";
    case Reason::kHashed:
      return "routing_key_hit";
    case Reason::kHashSpilled:
      return "load_balance_walk";
    case Reason::kRandom:
      return "random_fallback";
    default:
      return "";
  }
}

std::string_view prefix_hash_branch(Reason reason) {
  switch (reason) {
    case Reason::kHashed:
      return "ring_hit";
    case Reason::kHashSpilled:
      return "load_balance_walk";
    case Reason::kRandom:
      return "no_routing_key";
    default:
      return "";
  }
}

}  // namespace

std::optional<PolicyBranch> policy_branch(std::string_view policy, Reason reason) {
  if (reason == Reason::kKeepsResponse) return std::nullopt;  // no policy was asked
  PolicyBranch found;
  // Under --routing-key-override keys are looked at first, whatever the policy.
  const bool by_key = reason == Reason::kRoutingKey || reason == Reason::kKeyMoved || reason == Reason::kKeyAssigned;
  if (by_key || policy == "manual") {
    found = {"smg_manual_policy_branch_total", manual_branch(reason)};
  } else if (policy == "cache_aware") {
    found = {"smg_cache_aware_policy_branch_total", cache_aware_branch(reason)};
  } else if (policy == "consistent_hashing") {
    found = {"smg_consistent_hashing_policy_branch_total", consistent_hashing_branch(reason)};
  } else if (policy == "prefix_hash") {
    found = {"smg_prefix_hash_policy_branch_total", prefix_hash_branch(reason)};
  }
  return found.branch.empty() ? std::nullopt : std::optional(found);
}

}  // namespace sluice::gateway
