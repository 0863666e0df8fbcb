#include "engine/stop_regex.h"

#include <gtest/gtest.h>

#include "protocol/sampling.h"

namespace sluice::engine {
namespace {

TEST(StopRegexTest, FindsTheFirstPatternThatMatches) {
  const auto regexes = StopRegexes::compile({"[0-9]{3}", "END$"});
  ASSERT_TRUE(regexes.ok());
  EXPECT_EQ(regexes->find("12 ab"), nullptr);
  EXPECT_EQ(*regexes->find("x123y"), "[0-9]{3}");
  EXPECT_EQ(*regexes->find("the END"), "END$");
  EXPECT_EQ(regexes->find("\xE2\x82"), nullptr) << "half a character does no harm";
}

TEST(StopRegexTest, APatternThatTakesForEverDoesNotMatch) {
  const auto regexes = StopRegexes::compile({"(a+)+b"});
  ASSERT_TRUE(regexes.ok());
  EXPECT_EQ(regexes->find(std::string(StopRegexes::kTail, 'a')), nullptr);
}

TEST(StopRegexTest, SaysWhereAPatternIsWrong) {
  const auto regexes = StopRegexes::compile({"a(b"});
  ASSERT_FALSE(regexes.ok());
  EXPECT_EQ(regexes.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(regexes.error().message.find("stop_regex"), std::string::npos);
  EXPECT_NE(regexes.error().message.find("byte 3"), std::string::npos) << regexes.error().message;
  EXPECT_TRUE(StopRegexes::compile({std::string(protocol::kMaxStopRegexBytes, 'a')}).ok());
  EXPECT_FALSE(StopRegexes::compile({std::string(protocol::kMaxStopRegexBytes + 1, 'a')}).ok());
}

}  // namespace
}  // namespace sluice::engine
