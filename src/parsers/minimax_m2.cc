#include "parsers/minimax_m2.h"

#include "parsers/tagged_calls.h"

namespace sluice::parsers {
namespace {

constexpr TaggedCallForm kForm = {
    .section_begin = "<minimax:tool_call>",
    .section_end = "</minimax:tool_call>",
    .call_begin = "<invoke name=\"",
    .parameter_begin = "<parameter name=\"",
    .name_end = "\">",
    .parameter_end = "</parameter>",
    .call_end = "</invoke>",
};

std::string example(std::string_view text, const std::vector<ExampleCall>& calls) {
  return write_tagged_calls(kForm, text, calls);
}

}  // namespace

ToolCallFormat minimax_m2_format() {
  return {.name = "minimax-m2",
          .aliases = {},
          .make = []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<TaggedCalls>(kForm); },
          .opens = {kForm.section_begin},
          .marks = {kForm.section_begin, kForm.section_end},
          .example = example};
}

}  // namespace sluice::parsers
