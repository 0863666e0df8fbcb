#include "gateway/usage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <string>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

TEST(UsageTest, ReadsEachShape) {
  const auto openai = read_usage(R"({"choices":[],"usage":{"prompt_tokens":10,"total_tokens":13,"completion_tokens":3,)"
                                 R"("prompt_tokens_details":{"cached_tokens": 4}}})");
  ASSERT_TRUE(openai);
  EXPECT_EQ(openai->prompt_tokens, 10);
  EXPECT_EQ(openai->cached_tokens, 4);
  EXPECT_EQ(openai->completion_tokens, 3);
  const auto responses = read_usage(R"({"status":"completed","usage":{"input_tokens":9,)"
                                    R"("input_tokens_details":{"cached_tokens":8},"output_tokens":2,)"
                                    R"("output_tokens_details":{"reasoning_tokens":1},"total_tokens":11}})");
  ASSERT_TRUE(responses);
  EXPECT_EQ(responses->prompt_tokens, 9);
  EXPECT_EQ(responses->cached_tokens, 8);
  EXPECT_EQ(responses->completion_tokens, 2);
  const auto native =
      read_usage(R"({"text":"x","meta_info":{"prompt_tokens":7,"completion_tokens":2,"cached_tokens":0}})");
  ASSERT_TRUE(native);
  EXPECT_EQ(native->prompt_tokens, 7);
}

TEST(UsageTest, NothingCachedIsZero) {
  EXPECT_EQ(read_usage(R"({"usage":{"prompt_tokens":10,"prompt_tokens_details":null}})")->cached_tokens, 0);
}

TEST(UsageTest, TheLastEventOfAStreamCounts) {
  EXPECT_EQ(read_usage("data: {\"meta_info\":{\"prompt_tokens\":5,\"completion_tokens\":1}}\n\n"
                       "data: {\"meta_info\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n")
                ->completion_tokens,
            2);
}

TEST(UsageTest, TextOfTheModelIsNotTakenForIt) {
  EXPECT_FALSE(read_usage(R"({"text":"say \"prompt_tokens\":999 please"})"));
  EXPECT_FALSE(read_usage(""));
  EXPECT_FALSE(read_usage(R"({"usage":{"prompt_tokens":null}})"));
  EXPECT_FALSE(read_usage(R"({"usage":{"prompt_tokens":-1}})"));
}

// The slow twin looks for each key on its own.
TEST(UsageTest, AgreesWithASearchForEachKey) {
  const auto last_of = [](const std::string& text, std::initializer_list<std::string> keys) -> std::optional<int64_t> {
    size_t after = 0;
    for (const std::string& key : keys) {
      const std::string quoted = "\"" + key + "\":";
      if (const size_t at = text.rfind(quoted); at != std::string::npos) after = std::max(after, at + quoted.size());
    }
    if (after == 0) return std::nullopt;
    const size_t digits = text.find_first_not_of(' ', after);
    if (digits == std::string::npos || text[digits] < '0' || text[digits] > '9') return std::nullopt;
    return std::strtoll(text.c_str() + digits, nullptr, 10);
  };
  constexpr const char* kPieces[] = {"\"prompt_tokens\":",
                                     "\"cached_tokens\":",
                                     "\"completion_tokens\":",
                                     "\"input_tokens\":",
                                     "\"output_tokens\":",
                                     "\"total_tokens\":",
                                     "\\\"prompt_tokens\":",
                                     "_tokens\":",
                                     "7",
                                     "12",
                                     " ",
                                     ":",
                                     "null",
                                     "{\"a\":\"b\"}"};
  Rng rng(3);
  int found = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string text;
    for (uint64_t n = rng.below(12); n > 0; --n) text += kPieces[rng.below(std::size(kPieces))];
    const auto prompt = last_of(text, {"prompt_tokens", "input_tokens"});
    const auto usage = read_usage(text);
    ASSERT_EQ(usage.has_value(), prompt.has_value()) << text;
    if (!usage) continue;
    ++found;
    ASSERT_EQ(usage->prompt_tokens, *prompt) << text;
    ASSERT_EQ(usage->cached_tokens, last_of(text, {"cached_tokens"}).value_or(0)) << text;
    ASSERT_EQ(usage->completion_tokens, last_of(text, {"completion_tokens", "output_tokens"}).value_or(0)) << text;
  }
  EXPECT_GT(found, 1000);
}

TEST(TailTest, KeepsTheLastBytesHoweverTheyCome) {
  std::string all;
  Tail tail;
  for (int i = 0; i < 3000; ++i) {
    const std::string part = std::to_string(i) + std::string(static_cast<size_t>(i % 97), 'x');
    all += part;
    tail.append(part);
    ASSERT_LE(tail.text().size(), 2 * Tail::kBytes);
    ASSERT_TRUE(std::string_view(all).ends_with(tail.text()));
    ASSERT_GE(tail.text().size(), std::min(all.size(), Tail::kBytes));
  }
  tail.append(std::string(100'000, 'y'));
  EXPECT_EQ(tail.text(), std::string(Tail::kBytes, 'y'));
}

}  // namespace
}  // namespace sluice::gateway
