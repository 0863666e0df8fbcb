#include "parsers/qwen3_coder.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

// As the model's template asks for it.
TEST(Qwen3CoderTest, ValuesHaveLinesOfTheirOwn) {
  const auto read = read_whole("qwen3_coder", R"(I look.
<tool_call>
<function=get_weather>
<parameter=city>

two
lines

</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>)");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "\ntwo\nlines\n", "days": 3})");
  EXPECT_EQ(read.text, "I look.");
}

TEST(Qwen3CoderTest, EndsMayBeMissing) {
  const auto read = read_whole(
      "qwen3_coder", "<function=get_weather>\n<parameter=city>\nBonn\n<parameter=days>\n3\n</function>\n</tool_call>");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "Bonn", "days": 3})");
}

}  // namespace
}  // namespace sluice::parsers
