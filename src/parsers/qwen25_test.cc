#include "parsers/qwen25.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

// As the templates of Qwen2.5 and Qwen3 ask for it.
TEST(Qwen25Test, ReadsObjectsBetweenTags) {
  const auto read = read_whole(
      "qwen25",
      "Sure.\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>\n"
      "<tool_call>\n{\"arguments\": {\"days\": 2}, \"name\": \"get_weather\"}\n</tool_call>");
  ASSERT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "Oslo"})");
  EXPECT_EQ(read.calls[1].arguments, R"({"days": 2})");
  EXPECT_EQ(read.text, "Sure.");
}

TEST(Qwen25Test, TakesWhatModelsMakeOfArguments) {
  const auto arguments = [](std::string_view members) {
    const auto read = read_whole("qwen25", fmt::format("<tool_call>{{{}}}</tool_call>", members));
    return read.calls.size() == 1 ? read.calls[0].arguments : read.text;
  };
  EXPECT_EQ(arguments(R"("name": "now")"), "{}");
  EXPECT_EQ(arguments(R"("name": "now", "arguments": null)"), "{}");
  EXPECT_EQ(arguments(R"("name": "now", "arguments": "{\"a\": 1}")"), R"({"a": 1})");
  EXPECT_EQ(arguments(R"("name": "now", "parameters": {"a": 1}, "id": 5)"), R"({"a": 1})");
  EXPECT_EQ(arguments(R"("name": "now", "arguments": {"a": 1}, "parameters": {"b": 1})"), R"({"a": 1})");
  EXPECT_EQ(arguments(R"("name": 1)"), R"(<tool_call>{"name": 1}</tool_call>)");
}

TEST(Qwen25Test, ACallMayLackItsEnd) {
  const auto read = read_whole("qwen25", R"(<tool_call>{"name": "now"}<tool_call>{"name": "now"}</tool_call> done)");
  EXPECT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.text, "done");
}

// Ends that never come are not looked for in all that follows, at each call again: minutes for so many.
TEST(Qwen25Test, ManyCallsWithoutTheirEndTakeAsLongAsTheyAre) {
  constexpr size_t kCalls = 200'000;
  std::string text;
  for (size_t i = 0; i < kCalls; ++i) text += R"(<tool_call>{"name": "now"})";
  EXPECT_EQ(read_whole("qwen25", text).calls.size(), kCalls);
}

}  // namespace
}  // namespace sluice::parsers
