#include "engine/weight_query.h"

#include <nlohmann/json.hpp>
#include <span>

namespace sluice::engine {
namespace {

using nlohmann::json;

json nested(std::span<const int64_t> shape, std::span<const float> values) {
  json out = json::array();
  const size_t count = values.size() / static_cast<size_t>(shape.front());
  for (int64_t i = 0; i < shape.front(); ++i) {
    const auto part = values.subspan(static_cast<size_t>(i) * count, count);
    out.push_back(shape.size() > 1 ? nested(shape.subspan(1), part) : json(static_cast<double>(part[0])));
  }
  return out;
}

}  // namespace

std::string to_json(const WeightQuery& query) { return json{{"name", query.name}, {"rows", query.rows}}.dump(); }

Result<std::string> answer_weight_query(const models::Runner& runner, std::string_view query) {
  const json asked = json::parse(query, nullptr, /*allow_exceptions=*/false);
  if (!asked.is_object() || !asked.contains("name") || !asked["name"].is_string() || !asked.contains("rows") ||
      !asked["rows"].is_number_integer()) {
    return Error{ErrorCode::kInvalidArgument, "no query of a weight"};
  }
  SLUICE_TRY(const auto weight, runner.read_weight(asked["name"].get<std::string>(), asked["rows"].get<int64_t>()));
  if (weight.values.empty()) return std::string("[]");
  return nested(weight.shape, weight.values).dump();
}

}  // namespace sluice::engine
