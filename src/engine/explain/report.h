// What `sluice explain` prints.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "engine/explain/explain.h"

namespace sluice::engine {

struct Explanation {
  DescribedModel model;
  Hardware hardware;
  Workload workload;
  LayoutFacts layout;                    // the one given
  std::vector<models::RankShape> ranks;  // of one instance
  std::vector<LayoutFacts> weighed;      // fastest first; empty without rates
};

Result<Explanation> explain(const EngineOptions& options, const Hardware& hardware, const Workload& workload,
                            const std::vector<int64_t>& concurrency);

std::string to_text(const Explanation& explanation);
nlohmann::ordered_json to_json(const Explanation& explanation);

}  // namespace sluice::engine
