#include "tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tokenizer/normalizer.h"
#include "tokenizer/pre_tokenizer.h"

namespace sluice::tokenizer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What the `tokenizers` package makes of it too: Split(Regex(pattern), behavior, invert).
std::vector<std::string> words(std::string_view pattern, std::string_view text,
                               SplitBehavior behavior = SplitBehavior::kIsolated, bool invert = false) {
  auto regex = Regex::compile(pattern);
  if (!regex.ok()) return {regex.error().message};
  Words out;
  PreTokenizer({SplitStep{*regex, behavior, invert}}).split(text, true, out);
  return {out.words.begin(), out.words.end()};
}

std::string replaced(std::string_view pattern, std::string_view text) {
  auto regex = Regex::compile(pattern);
  if (!regex.ok()) return regex.error().message;
  std::string storage;
  return std::string(Normalizer({ReplaceStep{*regex, "_"}}).apply(text, storage));
}

TEST(RegexTest, ClassesHaveIntersectionsAndUnions) {
  EXPECT_THAT(words(R"([\p{L}&&[^\p{Lu}]]+)", "abCdE"), ElementsAre("ab", "C", "d", "E"));
  EXPECT_THAT(words(R"([^\p{L}&&\p{Lu}]+)", "abCdE"), ElementsAre("ab", "C", "d", "E"));
  EXPECT_THAT(words("[a-y&&[^aeiou]&&[^x]]", "oxybet"), ElementsAre("ox", "y", "b", "e", "t"));
  EXPECT_THAT(words("[a-f[0-9]]+", "xa9fz"), ElementsAre("x", "a9f", "z"));
  EXPECT_THAT(words(R"([\W0]+)", "a 0-b"), ElementsAre("a", " 0-", "b"));
  EXPECT_THAT(words("[]a^]+", "x]a^x"), ElementsAre("x", "]a^", "x"));
  EXPECT_THAT(words("[[:punct:]]+", "a$+.b"), ElementsAre("a", "$+.", "b"));
}

TEST(RegexTest, AnIntervalIsNeitherPossessiveNorLazy) {
  EXPECT_THAT(words("a{1,2}+b", "aaaab"), ElementsAre("aaaab"));
  EXPECT_THAT(words("(?:ab){2}?c", "ababc abc c"), ElementsAre("ababc", " ab", "c", " ", "c"));
  EXPECT_THAT(words("a{,2}b", "aaab"), ElementsAre("a", "aab"));
  EXPECT_THAT(words(R"(\x61{1,2}+b)", "aaaab"), ElementsAre("aaaab"));
  EXPECT_THAT(words("a{b", "a{b}"), ElementsAre("a{b", "}"));
}

TEST(RegexTest, WordsHaveMarks) {
  EXPECT_THAT(words(R"(\w+)", "e\u0301a ² Ⓐ-‿ \u200d"),
              ElementsAre("e\u0301a", " ", "²", " ", "Ⓐ", "-", "‿", " \u200d"));
  EXPECT_THAT(words(R"([\w]+)", "e\u0301a²"), ElementsAre("e\u0301a", "²"));
  EXPECT_THAT(words(R"(\W)", "a e\u0301"), ElementsAre("a", " ", "e\u0301"));
  EXPECT_THAT(words(R"(\bfoo)", "foo e\u0301foo"), ElementsAre("foo", " e\u0301foo"));
  EXPECT_THAT(words(R"(\d+)", "1\U00010D40a"), ElementsAre("1\U00010D40", "a")) << "a digit of Unicode 16";
  EXPECT_THAT(words(R"(\h+)", "xaf9z"), ElementsAre("x", "af9", "z")) << "of a hexadecimal number";
  EXPECT_THAT(words("(?m:a.)", "a\nb"), ElementsAre("a\n", "b"));
}

TEST(RegexTest, AnEmptyMatchCuts) {
  EXPECT_THAT(words(R"((?=(\d{3})+(?!\d)))", "1234567"), ElementsAre("1", "234", "567"));
  EXPECT_THAT(words("(?=[A-Z])", "helloWorldFoo"), ElementsAre("hello", "World", "Foo"));
  EXPECT_THAT(words("x*", "axbé"), ElementsAre("a", "x", "b", "é"));
  EXPECT_THAT(words("$", "ab\nc"), ElementsAre("ab", "\nc"));
  const std::string_view pattern = "(?=[A-Z])|o", text = "helloWorldFoo";
  EXPECT_THAT(words(pattern, text), ElementsAre("hell", "o", "W", "o", "rld", "F", "o", "o"));
  EXPECT_THAT(words(pattern, text, SplitBehavior::kRemoved), ElementsAre("hell", "W", "rld", "F"));
  EXPECT_THAT(words(pattern, text, SplitBehavior::kMergedWithPrevious), ElementsAre("hello", "Wo", "rld", "Fo", "o"));
  EXPECT_THAT(words(pattern, text, SplitBehavior::kMergedWithNext), ElementsAre("hell", "oW", "orld", "F", "o", "o"));
  EXPECT_THAT(words(pattern, text, SplitBehavior::kContiguous), ElementsAre("hell", "o", "W", "o", "rld", "F", "oo"));
  EXPECT_THAT(words("x*", "axb", SplitBehavior::kMergedWithPrevious, /*invert=*/true), ElementsAre("a", "xb"));
  EXPECT_EQ(replaced("^", "abC\nxd"), "_abC\n_xd");
  EXPECT_EQ(replaced("$", "abC\nxd"), "abC_\nxd_");
  EXPECT_EQ(replaced("x*", "abC\nxd"), "_a_b_C_\n_d_");
  EXPECT_EQ(replaced("^", ""), "");
}

TEST(RegexTest, WhatHasNoMeaningIsRefused) {
  for (const char* pattern : {"[a", "[a&&]", "[&&a]", "[[]a", "(a", "a)", "\\"}) {
    const auto regex = Regex::compile(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_EQ(regex.error().code, ErrorCode::kProtocol);
  }
  EXPECT_THAT(Regex::compile(std::string(100, '[')).error().message, HasSubstr("nested too deep"));
  EXPECT_THAT(Regex::compile("[a&&]").error().message, HasSubstr("no members"));
}

}  // namespace
}  // namespace sluice::tokenizer
