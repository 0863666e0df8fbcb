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
  EXPECT_EQ(*StopRegexes::compile({"^a"})->find("ab"), "^a");
  EXPECT_EQ(StopRegexes::compile({"^a", "^b"})->find("ab", 1), nullptr) << "b is not where the answer begins";
  EXPECT_EQ(regexes->find("\xE2\x82"), nullptr) << "half a character does no harm";
}

TEST(StopRegexTest, APatternThatTakesForEverDoesNotMatch) {
  const std::string tail(StopRegexes::kTail, 'a');
  EXPECT_EQ(*StopRegexes::compile({"b", "a"})->find(tail), "a");
  for (const char* pattern :
       {"(a+)+[bc]", R"(.{0,190}.{0,100}[\x01\x02])", R"((.*)*[\x01\x02])", "(?:(?:a|a)*)*[bc]", R"(\w*\w*\w*[bc])"}) {
    // Of what it may take nothing is left for the next.
    EXPECT_EQ(StopRegexes::compile({pattern, "a"})->find(tail), nullptr) << pattern;
  }
}

TEST(StopRegexTest, WhatTakesAWhileIsFound) {
  // As many bytes of an answer as are looked at, and what is wanted at their end.
  std::string tail;
  while (tail.size() < StopRegexes::kTail - 20) tail += "some words and, now and then, a.mark ";
  tail += "and me@example.org ";
  for (const char* pattern :
       {R"(\w+@\w+\.org)", R"((?i)EXAMPLE\.(com|org))", R"((\w+ )*and \S+@)", R"([^@]*@example)"}) {
    EXPECT_NE(StopRegexes::compile({pattern})->find(tail), nullptr) << pattern;
  }
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
