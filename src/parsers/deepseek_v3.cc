#include "parsers/deepseek_v3.h"

#include "parsers/marked_calls.h"

namespace sluice::parsers {
namespace {

constexpr std::string_view kSeparator = "<｜tool▁sep｜>";

// "function<｜tool▁sep｜>NAME"
MarkedCallForm::Head read_v3_head(std::string_view head) {
  const size_t separator = head.find(kSeparator);
  if (separator == std::string_view::npos) return {};
  return {trimmed(head.substr(separator + kSeparator.size())), {}};
}

MarkedCallForm::Head read_v31_head(std::string_view head) { return {trimmed(head), {}}; }

constexpr MarkedCallForm kV3 = {
    .section_begin = "<｜tool▁calls▁begin｜>",
    .section_end = "<｜tool▁calls▁end｜>",
    .call_begin = "<｜tool▁call▁begin｜>",
    .call_end = "<｜tool▁call▁end｜>",
    .separator = "\n```json\n",
    .read_head = read_v3_head,
};

constexpr MarkedCallForm kV31 = {
    .section_begin = kV3.section_begin,
    .section_end = kV3.section_end,
    .call_begin = kV3.call_begin,
    .call_end = kV3.call_end,
    .separator = kSeparator,
    .read_head = read_v31_head,
};

std::string v3_example(std::string_view text, const std::vector<ExampleCall>& calls) {
  std::vector<std::string> heads, arguments;
  for (const auto& call : calls) {
    heads.push_back(fmt::format("function{}{}", kSeparator, call.name));
    arguments.push_back(call.arguments + "\n```");
  }
  return write_marked_calls(kV3, text, heads, arguments, "\n");
}

std::string v31_example(std::string_view text, const std::vector<ExampleCall>& calls) {
  std::vector<std::string> heads, arguments;
  for (const auto& call : calls) {
    heads.push_back(call.name);
    arguments.push_back(call.arguments);
  }
  return write_marked_calls(kV31, text, heads, arguments, "");
}

ToolCallFormat format(std::string_view name, std::unique_ptr<ToolCallParser> (*make)(),
                      std::string (*example)(std::string_view, const std::vector<ExampleCall>&)) {
  return {.name = name,
          .aliases = {},
          .make = make,
          .opens = {kV3.section_begin, kV3.call_begin},
          .marks = {kV3.section_begin, kV3.section_end, kV3.call_begin, kV3.call_end, kSeparator},
          .example = example};
}

}  // namespace

ToolCallFormat deepseek_v3_format() {
  return format(
      "deepseekv3", []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<MarkedCalls>(kV3); }, v3_example);
}

ToolCallFormat deepseek_v31_format() {
  return format(
      "deepseekv31", []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<MarkedCalls>(kV31); },
      v31_example);
}

}  // namespace sluice::parsers
