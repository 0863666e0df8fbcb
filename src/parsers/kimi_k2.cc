#include "parsers/kimi_k2.h"

#include "parsers/marked_calls.h"

namespace sluice::parsers {
namespace {

// "functions.NAME:3". The model expects to see this id again in the next turn, so it is the id that clients get.
MarkedCallForm::Head read_head(std::string_view head) {
  constexpr std::string_view kFunctions = "functions.";
  const auto id = trimmed(head);
  auto name = id;
  if (name.starts_with(kFunctions)) name.remove_prefix(kFunctions.size());
  const size_t colon = name.rfind(':');
  const bool numbered = colon != std::string_view::npos && colon + 1 < name.size() &&
                        name.find_first_not_of("0123456789", colon + 1) == std::string_view::npos;
  if (!numbered) return {name, {}};
  return {name.substr(0, colon), id};
}

constexpr MarkedCallForm kForm = {
    .section_begin = "<|tool_calls_section_begin|>",
    .section_end = "<|tool_calls_section_end|>",
    .call_begin = "<|tool_call_begin|>",
    .call_end = "<|tool_call_end|>",
    .separator = "<|tool_call_argument_begin|>",
    .read_head = read_head,
};

std::string example(std::string_view text, const std::vector<ExampleCall>& calls) {
  std::vector<std::string> heads, arguments;
  for (const auto& call : calls) {
    heads.push_back(call.id.empty() ? fmt::format("functions.{}:{}", call.name, heads.size()) : call.id);
    arguments.push_back(call.arguments);
  }
  return write_marked_calls(kForm, text, heads, arguments, "");
}

}  // namespace

ToolCallFormat kimi_k2_format() {
  return {.name = "kimi_k2",
          .aliases = {},
          .make = []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<MarkedCalls>(kForm); },
          .opens = {kForm.section_begin, kForm.call_begin},
          .marks = {kForm.section_begin, kForm.section_end, kForm.call_begin, kForm.call_end, kForm.separator},
          .has_ids = true,
          .example = example};
}

}  // namespace sluice::parsers
