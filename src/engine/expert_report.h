// What all ranks recorded of their experts' loads (moe/expert_recorder.h), put together and written.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"

namespace sluice::engine {

struct ExpertReport {
  std::string mode;
  int64_t steps = 0;        // that all ranks of an instance recorded; of all instances
  double balancedness = 1;  // mean over steps and layers of (mean tokens of a rank / most tokens of a rank)
  std::vector<std::vector<int64_t>> logical_count;  // [layers of the model][experts], all zeros for dense layers
  std::map<int64_t, int64_t> rank_tokens;           // by rank, tokens that came to its experts, in all layers
};

// `records` by rank; ranks r with the same r / tp_size are an instance. kProtocol where one is no record.
Result<ExpertReport> merge_expert_records(const std::map<int64_t, std::string>& records);

// <prefix>.json with the sums, which --init-expert-location takes; of the modes per_pass and per_token a file of each
// rank, <prefix>_<rank>.json. Returns the files. kUnavailable with the path and the cause.
Result<std::vector<std::string>> write_expert_records(const ExpertReport& report,
                                                      const std::map<int64_t, std::string>& records,
                                                      const std::string& prefix);

}  // namespace sluice::engine
