#include "gateway/worker_request.h"

#include <algorithm>
#include <iterator>

#include "gateway/client_json.h"
#include "net/http.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::ordered_json;

Error wrong(std::string what) { return {ErrorCode::kInvalidArgument, std::move(what)}; }

// Of a field that has one value here, whatever others there are elsewhere.
bool is_only(const Json& body, const char* name, std::string_view word) {
  const auto at = body.find(name);
  return at == body.end() || at->is_null() ||
         (at->is_string() && net::iequals(at->get_ref<const std::string&>(), word));
}

constexpr std::string_view kMembers[] = {"url",    "api_key",     "priority",        "cost",   "labels",    "model_id",
                                         "models", "worker_type", "connection_mode", "health", "resilience"};
constexpr const char* kGroups[] = {"health", "resilience"};

// Into details.rules, unless it is null, which is as good as not said.
Result<void> read_rule(const WorkerRule& rule, const std::string& named, const Json& value, WorkerDetails& details) {
  if (value.is_null()) return {};
  const bool is_bool = std::holds_alternative<bool WorkerRules::*>(rule.field);
  const bool is_whole = std::holds_alternative<int64_t WorkerRules::*>(rule.field);
  if (is_bool && !value.is_boolean()) return wrong(fmt::format("{} must be true or false", named));
  if (!is_bool) {
    const bool is_kind = is_whole ? value.is_number_integer() : value.is_number();
    const double number = is_kind ? value.get<double>() : 0;
    if (!is_kind || !(number >= rule.least && number <= rule.most)) {
      return wrong(fmt::format("{} must be {} from {:.0f} to {:.0f}", named, is_whole ? "an integer" : "a number",
                               rule.least, rule.most));
    }
  }
  details.rules[fmt::format("{}.{}", rule.group, rule.name)] =
      is_bool ? (value.get<bool>() ? 1 : 0) : value.get<double>();
  return {};
}

// The groups, and the names beside them.
Result<void> read_rules(const Json& body, WorkerDetails& details) {
  for (const auto& [name, value] : body.items()) {
    if (const WorkerRule* rule = find_worker_rule("", name)) {
      SLUICE_TRY_VOID(read_rule(*rule, name, value, details));
    }
  }
  for (const char* group : kGroups) {
    const auto members = body.find(group);
    if (members == body.end() || members->is_null()) continue;
    if (!members->is_object()) return wrong(fmt::format("{} must be an object", group));
    for (const auto& [name, value] : members->items()) {
      const std::string named = fmt::format("{}.{}", group, name);
      const WorkerRule* rule = find_worker_rule(group, name);
      if (rule == nullptr) {
        details.ignored.push_back(named);
      } else {
        SLUICE_TRY_VOID(read_rule(*rule, named, value, details));
      }
    }
  }
  return {};
}

// Of an entry of "models" all but the id, such as its aliases.
void read_ignored(const Json& model, std::vector<std::string>& ignored) {
  for (const auto& [name, value] : model.items()) {
    const std::string named = fmt::format("models.{}", name);
    const bool says_something = name != "id" && !value.empty();
    if (says_something && std::ranges::find(ignored, named) == ignored.end()) ignored.push_back(named);
  }
}

}  // namespace

// Both forms of the field: "model_id", and "models" of objects with "id".
Result<WorkerDetails> read_worker_details(const Json& body) {
  WorkerDetails details;
  if (const auto key = body.find("api_key"); key != body.end() && !key->is_null()) {
    if (!key->is_string()) return wrong("api_key must be a string");
    details.api_key = key->get<std::string>();
  }
  if (const auto priority = body.find("priority"); priority != body.end()) {
    const bool fits = priority->is_number_integer() &&
                      (!priority->is_number_unsigned() || priority->get<uint64_t>() <= uint64_t{INT64_MAX});
    if (!fits) return wrong("priority must be an integer of 64 bits");
    details.priority = priority->get<int64_t>();
  }
  if (const auto cost = body.find("cost"); cost != body.end()) {
    if (!cost->is_number()) return wrong("cost must be a number");
    details.cost = cost->get<double>();
  }
  if (const auto labels = body.find("labels"); labels != body.end()) {
    if (!labels->is_object()) return wrong("labels must be an object");
    for (const auto& [name, value] : labels->items()) {
      details.labels[name] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
  if (const auto model = body.find("model_id"); model != body.end() && !model->is_null()) {
    if (!model->is_string()) return wrong("model_id must be a string");
    details.models.push_back(model->get<std::string>());
  }
  if (const auto models = body.find("models"); models != body.end()) {
    if (!models->is_array()) return wrong("models must be a list");
    for (const auto& model : *models) {
      const bool is_object = model.is_object() && model.contains("id") && model["id"].is_string();
      if (!is_object && !model.is_string()) return wrong("models must be names, or objects with id");
      details.models.push_back(is_object ? model["id"].get<std::string>() : model.get<std::string>());
      if (is_object) read_ignored(model, details.ignored);
    }
  }
  SLUICE_TRY_VOID(read_rules(body, details));
  return details;
}

Result<WorkerRequest> read_worker_request(std::string_view text) {
  const auto body = parse_client_json(text);
  if (!body.ok() || !body->is_object() || !body->contains("url") || !(*body)["url"].is_string()) {
    return wrong("the body must be a JSON object with url");
  }
  WorkerRequest request{.url = (*body)["url"].get<std::string>()};
  SLUICE_TRY(request.details, read_worker_details(*body));
  if (!is_only(*body, "worker_type", "regular"))
    return wrong("worker_type must be regular: workers that only prefill, decode or encode are not supported");
  if (!is_only(*body, "connection_mode", "http"))
    return wrong("connection_mode must be http: workers are spoken to in no other way");
  for (const auto& [name, value] : body->items()) {
    const bool is_known = std::ranges::find(kMembers, name) != std::end(kMembers) || find_worker_rule("", name);
    if (!is_known) request.ignored.push_back(name);
  }
  request.ignored.insert(request.ignored.end(), request.details.ignored.begin(), request.details.ignored.end());
  return request;
}

}  // namespace sluice::gateway
