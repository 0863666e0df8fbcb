#include "parsers/qwen3_coder.h"

#include "parsers/tagged_calls.h"

namespace sluice::parsers {
namespace {

constexpr TaggedCallForm kForm = {
    .section_begin = "<tool_call>",
    .section_end = "</tool_call>",
    .call_begin = "<function=",
    .parameter_begin = "<parameter=",
    .name_end = ">",
    .parameter_end = "</parameter>",
    .call_end = "</function>",
    .lines = true,
    .may_omit_ends = true,
};

std::string example(std::string_view text, const std::vector<ExampleCall>& calls) {
  return write_tagged_calls(kForm, text, calls);
}

}  // namespace

ToolCallFormat qwen3_coder_format() {
  return {.name = "qwen3_coder",
          .aliases = {},
          .make = []() -> std::unique_ptr<ToolCallParser> { return std::make_unique<TaggedCalls>(kForm); },
          .opens = {kForm.section_begin},
          .marks = {kForm.section_begin, kForm.section_end},
          .example = example};
}

}  // namespace sluice::parsers
