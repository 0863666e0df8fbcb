#include "parsers/kimi_k2.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

// As the model's guide to tool calls has it.
TEST(KimiK2Test, TheIdIsTheModels) {
  const auto read = read_whole(
      "kimi_k2",
      "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
      R"({"city": "Beijing"}<|tool_call_end|><|tool_call_begin|> now:12 <|tool_call_argument_begin|>{}<|tool_call_end|>)"
      "<|tool_calls_section_end|>");
  ASSERT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.calls[0], (Read::Call{"functions.get_weather:0", "get_weather", R"({"city": "Beijing"})"}));
  EXPECT_EQ(read.calls[1], (Read::Call{"now:12", "now", "{}"}));
  EXPECT_EQ(read.text, "Let me see.");
}

TEST(KimiK2Test, ANameWithoutNumberHasNoId) {
  const auto read =
      read_whole("kimi_k2", "<|tool_call_begin|>functions.now<|tool_call_argument_begin|>{}<|tool_call_end|>");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0], (Read::Call{"", "now", "{}"}));
}

}  // namespace
}  // namespace sluice::parsers
