#include "parsers/forced_calls.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

const std::string kTwo =
    "[ {\"name\": \"get_weather\", \"parameters\": {\"city\": \"Pa}r]is\"}},\n"
    "  {\"name\": \"now\", \"parameters\": {}} ]";

TEST(ForcedCallsTest, TheListIsItsCallsWhateverPiecesItComesIn) {
  const Read want = read_pieces(forced_calls_format(), {kTwo});
  ASSERT_EQ(want.calls.size(), 2u);
  EXPECT_EQ(want.text, "");
  EXPECT_EQ(want.calls[0].name, "get_weather");
  EXPECT_EQ(want.calls[0].arguments, R"({"city": "Pa}r]is"})");
  EXPECT_EQ(want.calls[1].name, "now");
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < kTwo.size(); ++i) bytes.push_back(std::string_view(kTwo).substr(i, 1));
  EXPECT_EQ(read_pieces(forced_calls_format(), bytes), want);
}

TEST(ForcedCallsTest, AListThatIsCutIsCallsAsFarAsItCame) {
  const Read cut = read_pieces(forced_calls_format(), {std::string_view(kTwo).substr(0, 50)});
  ASSERT_EQ(cut.calls.size(), 1u);
  EXPECT_EQ(cut.calls[0].name, "get_weather");
  EXPECT_TRUE(cut.calls[0].arguments.starts_with("{\"city\""));
}

}  // namespace
}  // namespace sluice::parsers
