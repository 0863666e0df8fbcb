// What the body of POST /workers says of a worker, and that of a change.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gateway/worker_rules.h"

namespace sluice::gateway {

// Beside its address; what is not said stays as it is.
struct WorkerDetails {
  std::optional<std::string> api_key;
  std::optional<int64_t> priority;
  std::optional<double> cost;
  std::map<std::string, std::string> labels;
  std::vector<std::string> models;
  WorkerRuleChanges rules;
  std::vector<std::string> ignored;  // members of groups of rules and of models that have no effect here
};

// Of an object with other members too. kInvalidArgument names the field.
Result<WorkerDetails> read_worker_details(const nlohmann::ordered_json& body);

struct WorkerRequest {
  std::string url;  // as it was written
  WorkerDetails details;
  std::vector<std::string> ignored;  // members of the body that have no effect here, in their order
};
// kInvalidArgument for a worker that this gateway cannot use, too: one that does a part of the work, or is not spoken
// to over HTTP.
Result<WorkerRequest> read_worker_request(std::string_view text);

}  // namespace sluice::gateway
