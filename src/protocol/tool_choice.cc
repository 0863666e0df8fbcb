#include "protocol/tool_choice.h"

#include <nlohmann/json.hpp>

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

// "$ref": "#/$defs/X" counts from the root, so definitions move there.
Result<void> move_definitions(ordered_json& parameters, ordered_json& definitions) {
  const auto found = parameters.find("$defs");
  if (found == parameters.end() || !found->is_object()) return {};
  for (const auto& [name, definition] : found->items()) {
    if (definitions.contains(name) && definitions[name] != definition) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("tools have two definitions of $defs.{} that differ", name)};
    }
    definitions[name] = definition;
  }
  parameters.erase("$defs");
  return {};
}

}  // namespace

ToolChoice read_tool_choice(Fields& fields) {
  using Kind = ToolChoice::Kind;
  const auto* value = fields.find("tool_choice");
  if (value == nullptr || *value == "auto") return {};
  if (*value == "none") return {.kind = Kind::kNone, .name = ""};
  if (*value == "required") return {.kind = Kind::kRequired, .name = ""};
  if (value->is_object() && value->contains("function") && (*value)["function"].is_object()) {
    const auto name = (*value)["function"].value("name", ordered_json());
    if (name.is_string()) return {.kind = Kind::kNamed, .name = name.get<std::string>()};
  }
  fields.fail(R"(tool_choice must be "auto", "none", "required" or {"type": "function", "function": {"name": ...}})");
  return {};
}

Result<ordered_json> forced_calls_schema(const ToolChoice& choice, const ordered_json& tools, bool several) {
  const bool named = choice.kind == ToolChoice::Kind::kNamed;
  auto definitions = ordered_json::object();
  auto calls = ordered_json::array();
  for (const auto& tool : tools) {
    const auto& function = tool["function"];
    const auto name = function.value("name", ordered_json());
    if (!name.is_string()) {
      return Error{ErrorCode::kInvalidArgument, "tools holds a function whose name is no string"};
    }
    if (named && name != choice.name) continue;
    auto parameters = function.value("parameters", ordered_json());
    if (parameters.is_null()) parameters = ordered_json{{"type", "object"}};
    if (!parameters.is_object()) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("tools: the parameters of {} must be a JSON schema", dump(name))};
    }
    SLUICE_TRY_VOID(move_definitions(parameters, definitions));
    auto properties = ordered_json::object();
    properties["name"] = {{"type", "string"}, {"enum", ordered_json::array({name})}};
    properties["parameters"] = std::move(parameters);
    ordered_json call = {{"type", "object"}};
    call["properties"] = std::move(properties);
    call["required"] = {"name", "parameters"};
    calls.push_back(std::move(call));
    if (named) break;
  }
  if (calls.empty()) {
    return Error{ErrorCode::kInvalidArgument,
                 named ? fmt::format("tool_choice names the function '{}', which is not in tools", choice.name)
                       : "tool_choice \"required\" needs tools"};
  }
  ordered_json out = {{"type", "array"}, {"minItems", 1}};
  if (named || !several) out["maxItems"] = 1;
  if (calls.size() == 1) {
    out["items"] = std::move(calls[0]);
  } else {
    out["items"] = ordered_json::object();
    out["items"]["anyOf"] = std::move(calls);
  }
  if (!definitions.empty()) out["$defs"] = std::move(definitions);
  return out;
}

}  // namespace sluice::protocol
