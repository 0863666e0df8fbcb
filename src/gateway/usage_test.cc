#include "gateway/usage.h"

#include <gtest/gtest.h>

namespace sluice::gateway {
namespace {

TEST(UsageTest, ReadsBothShapes) {
  const auto openai = read_usage(R"({"choices":[],"usage":{"prompt_tokens":10,"total_tokens":13,"completion_tokens":3,)"
                                 R"("prompt_tokens_details":{"cached_tokens": 4}}})");
  ASSERT_TRUE(openai);
  EXPECT_EQ(openai->prompt_tokens, 10);
  EXPECT_EQ(openai->cached_tokens, 4);
  EXPECT_EQ(openai->completion_tokens, 3);
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
