#include "gateway/kv_events/view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

class KvViewTest : public ::testing::Test {
 protected:
  static KvPrompt prompt(int32_t first, size_t tokens, bool has_tools = false) {
    KvPrompt prompt{.tokens = std::vector<int32_t>(tokens), .has_tools = has_tools, .names = {}};
    std::iota(prompt.tokens.begin(), prompt.tokens.end(), first);
    return prompt;
  }
  std::vector<std::pair<uint32_t, size_t>> match(KvPrompt prompt) {
    std::vector<KvView::Known> found;
    view_.match(prompt, now_, found);
    std::vector<std::pair<uint32_t, size_t>> out;
    for (const auto& known : found) out.emplace_back(known.worker, known.tokens);
    return out;
  }
  // The worker holds the first blocks of the prompt.
  void hold(uint32_t worker, const KvPrompt& prompt, size_t block, size_t blocks) {
    for (uint64_t i = 0; i < blocks; ++i) {
      view_.index.store(worker, 1000 + i, i == 0 ? std::nullopt : std::optional<uint64_t>(999 + i),
                        std::span(prompt.tokens).subspan(i * block, block));
    }
  }

  KvView view_{1 << 20};
  TimePoint now_{1000s};
};

TEST_F(KvViewTest, OnlyWorkersThatAreKnownAndTrustedCount) {
  const KvPrompt text = prompt(0, 70);
  hold(1, text, 16, 4);
  EXPECT_TRUE(match(text).empty());
  view_.set_known(1, KvKnowledge::kPart, 16, now_);
  EXPECT_TRUE(match(text).empty());
  view_.set_trusted(1, true, false);
  EXPECT_THAT(match(text), UnorderedElementsAre(Pair(1, 64)));
  EXPECT_EQ(view_.of(1).knowledge, KvKnowledge::kPart);
  view_.set_trusted(1, false, false);
  EXPECT_TRUE(match(text).empty());
  EXPECT_EQ(view_.of(1).knowledge, KvKnowledge::kNothing);
}

TEST_F(KvViewTest, EachWorkerByItsOwnSizeOfBlock) {
  const KvPrompt text = prompt(0, 70);
  for (const auto& [worker, size, blocks] : {std::tuple(1U, 16, 2), {2U, 4, 15}, {3U, 1, 7}}) {
    hold(worker, text, static_cast<size_t>(size), static_cast<size_t>(blocks));
    view_.set_known(worker, KvKnowledge::kAll, size, now_);
    view_.set_trusted(worker, true, false);
  }
  EXPECT_THAT(match(text), UnorderedElementsAre(Pair(1, 32), Pair(2, 60), Pair(3, 7)));
}

TEST_F(KvViewTest, WhereToolsAreRenderedOtherwisePromptsWithToolsDoNotCount) {
  const KvPrompt text = prompt(0, 64);
  hold(1, text, 16, 4);
  view_.set_known(1, KvKnowledge::kAll, 16, now_);
  view_.set_trusted(1, true, /*tools_differ=*/true);
  EXPECT_THAT(match(text), UnorderedElementsAre(Pair(1, 64)));
  EXPECT_TRUE(match(prompt(0, 64, /*has_tools=*/true)).empty());
}

TEST_F(KvViewTest, WhatWasSentCountsUntilTheEventsCanTell) {
  view_.set_known(1, KvKnowledge::kAll, 16, now_);
  view_.set_trusted(1, true, false);
  KvPrompt first = prompt(0, 64);
  EXPECT_TRUE(match(first).empty());
  std::vector<KvView::Known> found;
  view_.match(first, now_, found);
  view_.sent(first, 1, now_);
  EXPECT_THAT(match(prompt(0, 64)), UnorderedElementsAre(Pair(1, 64)));
  KvPrompt longer = prompt(0, 200);
  longer.tokens[40] = -1;
  EXPECT_THAT(match(longer), UnorderedElementsAre(Pair(1, 32)));
  now_ += 9s;
  EXPECT_EQ(match(prompt(0, 64)).size(), 1U);
  now_ += 2s;
  EXPECT_TRUE(match(prompt(0, 64)).empty()) << "the events have told by now";
}

TEST_F(KvViewTest, WhatWasNotComputedAfterAllDoesNotCount) {
  for (const uint32_t worker : {1U, 2U}) {
    view_.set_known(worker, KvKnowledge::kAll, 16, now_);
    view_.set_trusted(worker, true, false);
  }
  KvPrompt text = prompt(0, 64);
  std::vector<KvView::Known> found;
  view_.match(text, now_, found);
  view_.sent(text, 1, now_);
  view_.unsent(text, 2, now_);
  EXPECT_THAT(match(text), UnorderedElementsAre(Pair(1, 64))) << "it was sent to another worker";
  view_.unsent(text, 1, now_);
  EXPECT_TRUE(match(text).empty());
  const TimePoint first = now_;
  view_.sent(text, 1, now_);
  now_ += 1s;
  view_.sent(text, 1, now_);
  view_.unsent(text, 1, first);
  EXPECT_THAT(match(text), UnorderedElementsAre(Pair(1, 64))) << "a later one of the same text goes on";
}

TEST_F(KvViewTest, WhatWasSentBeforeTheCacheWasEmptiedDoesNotCount) {
  view_.set_known(1, KvKnowledge::kAll, 16, now_);
  view_.set_trusted(1, true, false);
  KvPrompt text = prompt(0, 64);
  std::vector<KvView::Known> found;
  view_.match(text, now_, found);
  view_.sent(text, 1, now_);
  now_ += 1s;
  view_.forget_sent(1, now_);
  EXPECT_TRUE(match(text).empty());
  now_ += 100ms;
  view_.sent(text, 1, now_);
  EXPECT_EQ(match(text).size(), 1U);
}

// The time of an entry has few bits: what they cannot tell from now is weeks apart.
TEST_F(KvViewTest, WhatWasSentHoursAgoIsNotTakenForRecent) {
  view_.set_known(1, KvKnowledge::kAll, 16, now_);
  view_.set_trusted(1, true, false);
  KvPrompt text = prompt(0, 64);
  std::vector<KvView::Known> found;
  view_.match(text, now_, found);
  view_.sent(text, 1, now_);
  for (int i = 0; i < 3 * 24 * 3600 / 5; ++i) {
    now_ += 5s;
    ASSERT_EQ(match(text).empty(), i > 1) << 5 * (i + 1) << " s later";
  }
}

TEST_F(KvViewTest, WhatIsSentCountsHoweverLongAgoTheCacheWasEmptied) {
  view_.set_known(1, KvKnowledge::kAll, 16, now_);
  view_.set_trusted(1, true, false);
  KvPrompt text = prompt(0, 64);
  std::vector<KvView::Known> found;
  view_.match(text, now_, found);
  for (int i = 0; i < 24 * 3600 / 5; ++i) {
    now_ += 5s;
    view_.sent(text, 1, now_ - 4s);
    ASSERT_EQ(match(text).size(), 1U) << 5 * i << " s later";
  }
}

TEST_F(KvViewTest, OfMoreThanFourSizesOfBlockTheFifthIsNotLookedFor) {
  for (uint32_t worker = 0; worker < 5; ++worker) {
    const KvKnowledge knowledge = view_.set_known(worker, KvKnowledge::kAll, 4 << worker, now_);
    EXPECT_EQ(knowledge, worker < 4 ? KvKnowledge::kAll : KvKnowledge::kNothing) << worker;
    view_.set_trusted(worker, true, false);
  }
  EXPECT_EQ(view_.of(3).knowledge, KvKnowledge::kAll);
  EXPECT_EQ(view_.of(4).knowledge, KvKnowledge::kNothing);
}

}  // namespace
}  // namespace sluice::gateway
