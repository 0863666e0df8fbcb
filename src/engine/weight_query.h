// Looking at weights: the front asks a rank for the first rows of a tensor of its checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "models/runner.h"

namespace sluice::engine {

struct WeightQuery {
  std::string name;
  int64_t rows = 100;
};
std::string to_json(const WeightQuery& query);
// The tensor's values as nested lists.
Result<std::string> answer_weight_query(const models::Runner& runner, std::string_view query);

}  // namespace sluice::engine
