#include "parsers/deepseek_v3.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

// As the model card of DeepSeek-V3-0324 has it.
TEST(DeepseekV3Test, ReadsArgumentsOfACodeBlock) {
  const auto read = read_whole("deepseekv3",
                               "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```"
                               "json\n{\"city\": \"Tokyo\"}\n```"
                               "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{"
                               "\"city\": \"a ``` b\"}\n```"
                               "<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  ASSERT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "Tokyo"})");
  EXPECT_EQ(read.calls[1].arguments, R"({"city": "a ``` b"})");
  EXPECT_EQ(read.text, "");
}

TEST(DeepseekV3Test, EndsACallThatTheModelLeftOpenWithItsSection) {
  const auto read = read_whole("deepseekv3",
                               "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```"
                               "<｜tool▁calls▁end｜>done");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, "{}");
  EXPECT_EQ(read.text, "done");
}

TEST(DeepseekV3Test, DeepseekV31HasNoCodeBlock) {
  const auto read =
      read_whole("deepseekv31",
                 "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Tokyo\"}"
                 "<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "Tokyo"})");
}

}  // namespace
}  // namespace sluice::parsers
