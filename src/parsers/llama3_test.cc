#include "parsers/llama3.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

TEST(Llama3Test, AnAnswerThatIsAnObjectIsACall) {
  const auto read =
      read_whole("llama3", R"({"type": "function", "name": "get_weather", "parameters": {"city": "Rio"}})");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "Rio"})");
}

TEST(Llama3Test, ReadsListsAndSemicolons) {
  EXPECT_EQ(read_whole("llama3", R"([{"name": "now"}, {"name": "now"}])").calls.size(), 2u);
  const auto read = read_whole("llama3", R"(So: <|python_tag|>{"name": "now"}; {"name": "now"} bye)");
  EXPECT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.text, "So:bye");
}

TEST(Llama3Test, OtherObjectsAndCodeAreText) {
  for (const std::string_view text : {R"({"city": "Rio"})", R"(It is {"name": "now"})", "<|python_tag|>print(1)"}) {
    const auto read = read_whole("llama3", text);
    EXPECT_TRUE(read.calls.empty());
    EXPECT_EQ(read.text, text);
  }
}

}  // namespace
}  // namespace sluice::parsers
