#include "parsers/minimax_m2.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

// As the model's guide to tool calls has it.
TEST(MinimaxM2Test, ValuesHaveTheTypesOfTheSchema) {
  const auto read = read_whole("minimax-m2", R"(<minimax:tool_call>
<invoke name="get_weather">
<parameter name="city">San "F"</parameter>
<parameter name="days">3</parameter>
<parameter name="exact">True</parameter>
<parameter name="where">{"lat": 1}</parameter>
<parameter name="height">many</parameter>
<parameter name="unit">null</parameter>
<parameter name="other">7</parameter>
</invoke>
<invoke name="now">
</invoke>
</minimax:tool_call>)");
  ASSERT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.calls[0].arguments,
            R"({"city": "San \"F\"", "days": 3, "exact": true, "where": {"lat": 1}, "height": "many", "unit": null, )"
            R"("other": "7"})");
  EXPECT_EQ(read.calls[1].arguments, "{}");
  EXPECT_EQ(read.text, "");
}

TEST(MinimaxM2Test, KeepsWhiteSpaceOfValues) {
  const auto read = read_whole("minimax-m2",
                               "<minimax:tool_call><invoke name=\"get_weather\"><parameter name=\"city\">\n a\n\n"
                               "</parameter></invoke></minimax:tool_call>");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "\n a\n\n"})");
}

}  // namespace
}  // namespace sluice::parsers
