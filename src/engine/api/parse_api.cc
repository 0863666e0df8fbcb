#include "engine/api/parse_api.h"

#include "protocol/fields.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;

Error unknown(std::string_view field, std::string_view name, const std::vector<std::string_view>& known) {
  return {ErrorCode::kInvalidArgument,
          fmt::format("{} must be one of {}, got '{}'", field, fmt::join(known, ", "), name)};
}

// The text to read; required.
std::string read_text(protocol::Fields& fields) {
  if (!fields.given("text")) fields.fail("text is required");
  return fields.text("text");
}

Result<ordered_json> calls_in(ApiContext& api, std::string_view body) {
  SLUICE_TRY(const auto json, protocol::parse_object(body));
  protocol::Fields fields(json);
  const auto text = read_text(fields);
  const auto name = fields.text("tool_call_parser");
  const auto* tools = fields.find("tools");
  if (tools == nullptr || !tools->is_array()) fields.fail("tools must be a list of functions");
  if (!fields.ok()) return fields.error();
  const auto* format = name.empty() ? api.settings.tool_call_format : parsers::find_tool_call_format(name);
  if (format == nullptr) return unknown("tool_call_parser", name, parsers::tool_call_format_names());
  const parsers::OfferedTools offered(*tools);
  parsers::ToolCallWriter writer(offered);
  const auto parser = format->make();
  parser->push(text, writer);
  parser->finish(writer);
  auto found = writer.take();
  auto calls = ordered_json::array();
  for (auto& call : found.calls) {
    calls.push_back(
        {{"tool_index", call.index}, {"name", std::move(call.name)}, {"parameters", std::move(call.arguments)}});
  }
  ordered_json out = {{"normal_text", std::move(found.text)}};
  out["calls"] = std::move(calls);
  return out;
}

Result<ordered_json> reasoning_in(ApiContext& api, std::string_view body) {
  SLUICE_TRY(const auto json, protocol::parse_object(body));
  protocol::Fields fields(json);
  const auto text = read_text(fields);
  const auto name = fields.text("reasoning_parser");
  if (!fields.ok()) return fields.error();
  const auto* format = name.empty() ? api.settings.reasoning_format : parsers::find_reasoning_format(name);
  if (format == nullptr) return unknown("reasoning_parser", name, parsers::reasoning_format_names());
  const bool inside = parsers::begins_inside(*format, "");
  parsers::ReasoningSplitter splitter(*format, inside, /*stream=*/true, {});
  std::string reasoning, answer;
  splitter.push(text, reasoning, answer);
  splitter.finish(reasoning, answer);
  return ordered_json{{"reasoning_text", std::move(reasoning)}, {"text", std::move(answer)}};
}

}  // namespace

net::Task<> parse_function_call(ApiCall& call) { return answer_from_body(call, calls_in); }
net::Task<> separate_reasoning(ApiCall& call) { return answer_from_body(call, reasoning_in); }

}  // namespace sluice::engine
