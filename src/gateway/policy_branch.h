// The names that the SGLang gateway gives to the rules of its policies, for the *_policy_branch_total counters.
#pragma once

#include <optional>
#include <string_view>

#include "gateway/policy/policy.h"

namespace sluice::gateway {

struct PolicyBranch {
  std::string_view family;
  std::string_view branch;
};
// None: the policy has no such counter. kNoUsableWorker stands for a policy that refused workers that could be used.
std::optional<PolicyBranch> policy_branch(std::string_view policy, Reason reason);

}  // namespace sluice::gateway
