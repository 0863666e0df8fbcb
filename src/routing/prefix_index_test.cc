#include "routing/prefix_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "routing/common_prefix.h"
#include "routing/epoch.h"
#include "testing/fake_clock.h"

namespace sluice::routing {
namespace {

TEST(PrefixIndexTest, WhatWasInsertedIsFound) {
  PrefixIndex index({});
  index.insert("hello world", 1);
  index.flush();
  const PrefixMatch match = index.match("hello there");
  EXPECT_EQ(match.matched_bytes, 6u);
  ASSERT_EQ(match.num_holders, 1);
  EXPECT_EQ(match.holders[0], 1u);
  EXPECT_EQ(index.stats().inserts, 1u);
}

TEST(PrefixIndexTest, ADroppedWorkerIsForgottenAtOnceAndCanComeBack) {
  PrefixIndex index({});
  index.insert("hello", 1);
  index.flush();
  index.drop_worker(1);
  EXPECT_EQ(index.match("hello").num_holders, 0);
  index.insert("hello", 1);
  index.flush();
  EXPECT_EQ(index.match("hello").num_holders, 1);
}

TEST(PrefixIndexTest, AClaimThatIsNotUsedForItsAgeIsForgotten) {
  testing::FakeClock clock;
  PrefixIndex index({.max_age = std::chrono::hours(1), .clock = &clock});
  const auto holders = [&](std::string_view text) {
    index.flush();
    index.sweep();
    return int{index.match(text).num_holders};
  };
  index.insert("used again", 1);
  index.insert("left alone", 1);
  EXPECT_EQ(holders("left alone"), 1);
  clock.advance(std::chrono::minutes(40));
  index.insert("used again", 1);
  EXPECT_EQ(holders("left alone"), 1) << "it is younger than that";
  clock.advance(std::chrono::minutes(21));
  EXPECT_EQ(holders("left alone"), 0);
  EXPECT_EQ(holders("used again"), 1);
  EXPECT_EQ(index.stats().evictions_age, 1u);
  clock.advance(std::chrono::minutes(40));
  EXPECT_EQ(holders("used again"), 0);
  EXPECT_EQ(index.stats().nodes, 1u);
}

TEST(PrefixIndexTest, WithoutAnAgeNothingIsForgotten) {
  testing::FakeClock clock;
  PrefixIndex index({.clock = &clock});
  index.insert("left alone", 1);
  index.flush();
  clock.advance(std::chrono::hours(1000));
  index.sweep();
  EXPECT_EQ(index.match("left alone").num_holders, 1);
}

// The rounds of ageing come by themselves, and also where texts go on coming: nobody has to ask for one.
TEST(PrefixIndexTest, RoundsOfAgeingComeByThemselves) {
  testing::FakeClock clock;
  PrefixIndex index(
      {.sweep_interval = std::chrono::milliseconds(1), .max_age = std::chrono::hours(1), .clock = &clock});
  index.insert("left alone", 1);
  index.flush();
  clock.advance(std::chrono::hours(2));
  while (index.stats().nodes > 1) std::this_thread::yield();
  index.insert("left alone", 1);
  index.flush();
  clock.advance(std::chrono::hours(2));
  while (index.stats().evictions_age < 2) index.insert("another", 2);
  EXPECT_EQ(index.match("left alone").num_holders, 0);
  EXPECT_EQ(index.match("another").num_holders, 1);
}

TEST(PrefixIndexTest, AClaimQueuedBeforeTheDropIsVoid) {
  PrefixIndex index({});
  for (int i = 0; i < 100; ++i) index.insert("queued " + std::to_string(i), 1);
  index.drop_worker(1);
  index.flush();
  EXPECT_EQ(index.match("queued 7").num_holders, 0);
  index.sweep();
  EXPECT_EQ(index.stats().nodes, 1u);
}

TEST(PrefixIndexTest, AClaimCountsBeforeItIsApplied) {
  PrefixIndex index({});
  for (int i = 0; i < 200; ++i) {
    const std::string text = "prompt " + std::to_string(i) + " \xe4\xbd\xa0";
    index.insert(text, 3);
    index.insert(text, 5);
    const PrefixMatch match = index.match(text + "!");
    EXPECT_EQ(match.matched_bytes, text.size());
    EXPECT_EQ(match.num_holders, 2) << "whether the index thread was there first or not";
    // Two bytes of the last character are no shared character.
    EXPECT_EQ(index.match(text.substr(0, text.size() - 1) + "\x80").matched_bytes, text.size() - 3);
  }
  index.insert("void at once", 7);
  index.drop_worker(7);
  EXPECT_EQ(index.match("void at once").num_holders, 0);
}

TEST(PrefixIndexTest, OfChoicesMadeAtOnceForOneTextTheFirstCountsAndTheOthersLookAgain) {
  PrefixIndex index({});
  const std::string text(100, 'x');
  const PrefixMatch first = index.match(text), second = index.match(text), third = index.match(text);
  EXPECT_TRUE(index.insert_if_latest(text, 1, first).has_value());
  EXPECT_FALSE(index.insert_if_latest(text, 2, second).has_value());
  EXPECT_FALSE(index.insert_if_latest(text, 1, third).has_value()) << "what it costs there has changed";
  const PrefixMatch again = index.match(text);
  ASSERT_EQ(again.num_holders, 1) << "nothing was claimed for worker 2";
  EXPECT_EQ(again.holders[0], 1u);
  EXPECT_TRUE(index.insert_if_latest(text, 2, again).has_value());
  EXPECT_EQ(index.match(text).num_holders, 2);
}

TEST(PrefixIndexTest, AChoiceStandsWhereWhatCameSinceSharesLittleMore) {
  PrefixIndex index({});
  index.insert(std::string(80, 'x'), 1);
  const std::string text(160, 'x');
  const PrefixMatch found = index.match(text);
  EXPECT_EQ(found.matched_bytes, 80u);
  index.insert(std::string(99, 'x'), 3);
  index.insert("another", 4);
  EXPECT_TRUE(index.insert_if_latest(text, 1, found).has_value()) << "19 bytes more, not an eighth of 160";
  EXPECT_FALSE(index.insert_if_latest(text, 1, found).has_value()) << "all of it is claimed since";
}

TEST(PrefixIndexTest, WhatIsLeftOutOfATextIsNothingThatItSharesWithTheLatest) {
  PrefixIndex index({});
  const std::string salt(20, 's');
  PrefixMatch found = index.match(salt + "one");
  found.leave_out(salt.size());
  index.insert(salt + "two", 2);
  EXPECT_TRUE(index.insert_if_latest(salt + "one", 1, found).has_value());
}

TEST(PrefixIndexTest, AChoiceThatIsOlderThanNobodyKnowsWhatLooksAgain) {
  PrefixIndex index({});
  const PrefixMatch found = index.match("text");
  index.insert("another", 2);
  index.flush();
  EXPECT_FALSE(index.insert_if_latest("text", 1, found).has_value()) << "what came since is not in the queue any more";
  EXPECT_TRUE(index.insert_if_latest("text", 1, index.match("text")).has_value());
}

TEST(PrefixIndexTest, WhatIsWithdrawnIsForgotten) {
  PrefixIndex index({});
  index.insert("hello world", 1);
  const uint64_t refused = index.insert("hello there", 1);
  index.withdraw("hello there", 1, refused);
  index.withdraw("hello", 2, index.insert("hello", 2));
  index.flush();
  const PrefixMatch match = index.match("hello there");
  EXPECT_EQ(match.matched_bytes, 6u);
  ASSERT_EQ(match.num_holders, 1);
  EXPECT_EQ(match.holders[0], 1u);
  EXPECT_EQ(index.stats().withdrawn_inserts, 2u);
}

TEST(PrefixIndexTest, OfEqualClaimsThatAreAllWithdrawnNothingStays) {
  PrefixIndex index({});
  // In whatever order they come and go, and whether or not one was applied when the next came.
  for (int round = 0; round < 100; ++round) {
    const std::string text = "prompt " + std::to_string(round);
    const uint64_t first = index.insert(text, 3);
    const uint64_t second = index.insert(text, 3);
    if (round % 2 == 0) index.flush();
    index.withdraw(text, 3, round % 3 == 0 ? first : second);
    const uint64_t third = index.insert(text, 3);
    index.withdraw(text, 3, round % 3 == 0 ? second : first);
    index.withdraw(text, 3, third);
  }
  index.flush();
  for (int round = 0; round < 100; ++round) {
    EXPECT_EQ(index.match("prompt " + std::to_string(round)).num_holders, 0) << round;
  }
  EXPECT_EQ(index.stats().withdrawn_inserts, 300u);
}

TEST(PrefixIndexTest, OfTextsThatBeginAlikeAndAreAllWithdrawnNothingStays) {
  // Two, in both orders, and whether or not the first was applied when the second came.
  for (int round = 0; round < 8; ++round) {
    PrefixIndex index({.budget_bytes = 1 << 20});
    const uint64_t first = index.insert("common one", 1);
    if (round % 2 == 0) index.flush();
    const uint64_t second = index.insert("common two", 1);
    if (round % 4 < 2) {
      index.withdraw("common one", 1, first);
      if (round >= 4) index.flush();
      index.withdraw("common two", 1, second);
    } else {
      index.withdraw("common two", 1, second);
      index.withdraw("common one", 1, first);
    }
    index.flush();
    EXPECT_EQ(index.match("common").num_holders, 0) << round;
  }
}

TEST(PrefixIndexTest, OfAFamilyOfWithdrawnTextsWhatIsHeldStays) {
  Rng rng(3);
  const auto draw = [&] {
    std::string text = "root ";
    for (uint64_t length = 1 + rng.below(5); length > 0; --length) text += static_cast<char>('a' + rng.below(2));
    return text;
  };
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    PrefixIndex index({.budget_bytes = 1 << 20});
    std::vector<std::string> held;  // answered before the others came
    for (uint64_t i = rng.below(3); i > 0; --i) index.insert(held.emplace_back(draw()), 1);
    if (rng.below(2) == 0) index.flush();
    std::vector<std::pair<std::string, uint64_t>> open;
    std::vector<std::string> withdrawn;
    for (int step = 0; step < 12; ++step) {
      if (open.empty() || rng.below(3) > 0) {
        const std::string text = draw();
        open.emplace_back(text, index.insert(text, 1));
      } else {
        std::swap(open[rng.below(open.size())], open.back());
        index.withdraw(open.back().first, 1, open.back().second);
        withdrawn.push_back(open.back().first);
        open.pop_back();
      }
    }
    while (!open.empty()) {
      std::swap(open[rng.below(open.size())], open.back());
      index.withdraw(open.back().first, 1, open.back().second);
      withdrawn.push_back(open.back().first);
      open.pop_back();
    }
    index.flush();
    for (const std::string& text : held) EXPECT_EQ(index.match(text).matched_bytes, text.size()) << text;
    for (const std::string& text : withdrawn) {
      size_t most = 0;
      for (const std::string& other : held) most = std::max(most, common_prefix(text, other));
      EXPECT_EQ(index.match(text).matched_bytes, most) << text;
    }
  }
}

TEST(PrefixIndexTest, WhatWasAnsweredMeanwhileStaysWhereOthersAreWithdrawn) {
  PrefixIndex index({});
  const uint64_t first = index.insert("common one", 1);
  index.insert("common good", 1);
  const uint64_t second = index.insert("common two", 1);
  index.withdraw("common one", 1, first);
  index.withdraw("common two", 1, second);
  index.flush();
  EXPECT_EQ(index.match("common one").matched_bytes, 7u);
  EXPECT_EQ(index.match("common good").matched_bytes, 11u);
}

TEST(PrefixIndexTest, WhatWasNeverClaimedCannotBeWithdrawn) {
  PrefixIndex index({});
  const uint64_t claim = index.insert("hello", 1);
  index.withdraw("hello", 1, 0);
  index.withdraw("hello", 1, claim + 5);
  index.flush();
  EXPECT_EQ(index.match("hello").num_holders, 1);
  EXPECT_EQ(index.insert("", 1), 0u);
}

TEST(PrefixIndexTest, AWithdrawalIsNoClaimWhileItWaits) {
  PrefixIndex index({});
  const uint64_t claim = index.insert("another", 1);
  for (int i = 0; i < 200; ++i) {
    const std::string text = "prompt " + std::to_string(i);
    index.withdraw(text, 3, claim);
    EXPECT_EQ(index.match(text).num_holders, 0);
  }
}

TEST(PrefixIndexTest, AWithdrawalOfALifeThatIsOverTakesNothingOfTheNext) {
  PrefixIndex index({});
  const uint64_t before = index.insert("hello", 1);
  index.flush();
  index.drop_worker(1);
  const uint64_t after = index.insert("hello", 1);
  index.flush();
  index.withdraw("hello", 1, before);
  index.flush();
  EXPECT_EQ(index.match("hello").num_holders, 1);
  EXPECT_EQ(index.stats().withdrawn_inserts, 0u);
  index.withdraw("hello", 1, after);
  index.flush();
  EXPECT_EQ(index.match("hello").num_holders, 0);
}

TEST(PrefixIndexTest, AWithdrawalThatFindsNoRoomIsCounted) {
  PrefixIndex index({.budget_bytes = 64 << 10});  // 2 KiB may wait
  const std::string text(200, 'x');
  const uint64_t claim = index.insert(text, 1);
  index.flush();
  const EpochGuard reader;  // what waits is not taken while somebody may look at what was taken last
  for (int i = 0; i < 100; ++i) index.withdraw(text, 1, claim);
  EXPECT_GE(index.stats().dropped_inserts, 60u);
}

TEST(PrefixIndexTest, ALongTextIsKeptWhileItWaitsAndNoLonger) {
  PrefixIndex index({});
  auto body = std::make_shared<const std::string>("{" + std::string(50'000, 'x') + "}");
  const std::weak_ptr<const std::string> life = body;
  const std::string_view text = std::string_view(*body).substr(1, 50'000);
  const std::string prompt(text);
  std::optional<EpochGuard> reader(std::in_place);
  index.insert(text, 3, SIZE_MAX, {.owner = body});
  EXPECT_GE(index.stats().bytes, 50'000u) << "it counts";
  body = nullptr;
  EXPECT_FALSE(life.expired()) << "it is applied later";
  index.flush();
  EXPECT_FALSE(life.expired()) << "somebody may be looking at what waited";
  reader.reset();
  EXPECT_EQ(index.match(prompt + "!").matched_bytes, prompt.size());
  index.sweep();  // comes after what was applied before it
  EXPECT_TRUE(life.expired());
  EXPECT_EQ(index.match(prompt + "!").matched_bytes, prompt.size());
}

TEST(PrefixIndexTest, ATextIsCopiedWhereItsOwnerIsMuchLarger) {
  PrefixIndex index({});
  for (const size_t bytes : {100, 10'000}) {
    auto body = std::make_shared<const std::string>(std::string(100'000, 'x'));
    index.insert(std::string_view(*body).substr(0, bytes), 3, SIZE_MAX, {.owner = body});
    EXPECT_EQ(body.use_count(), 1) << bytes;
  }
  index.flush();
  EXPECT_EQ(index.match(std::string(20'000, 'x')).matched_bytes, 10'000u);
}

TEST(PrefixIndexTest, ATextIsCopiedWhereItsOwnerDoesNotFitAndItselfDoes) {
  PrefixIndex index({.budget_bytes = 1 << 20});  // 32 KiB may wait: two owners and one more text
  index.insert("x", 1);
  index.flush();
  const EpochGuard reader;  // what waits is not taken while somebody may look at what was taken last
  int kept = 0, copied = 0;
  for (int i = 0;; ++i) {
    const auto body = std::make_shared<const std::string>(std::to_string(i) + std::string(12'000, 'x'));
    if (index.insert(std::string_view(*body).substr(0, 7'000), 1, SIZE_MAX, {.owner = body}) == 0) break;
    ++(body.use_count() > 1 ? kept : copied);
  }
  EXPECT_GE(kept, 2);
  EXPECT_GE(copied, 1);
}

TEST(PrefixIndexTest, WhatIsKeptTakesTheRoomOfWhatMayWait) {
  PrefixIndex index({.budget_bytes = 1 << 20});  // 32 KiB may wait
  index.insert("x", 1);
  index.flush();
  const EpochGuard reader;  // what waits is not taken while somebody may look at what was taken last
  for (int i = 0; i < 20; ++i) {
    const auto body = std::make_shared<const std::string>(std::to_string(i) + std::string(10'000, 'x'));
    index.insert(*body, 1, SIZE_MAX, {.owner = body});
  }
  EXPECT_GE(index.stats().dropped_inserts, 10u);
  EXPECT_LE(index.stats().bytes, size_t{1} << 20);
}

// Prompts of a few families as they come to a gateway: looked for, and inserted with what that told, by several threads
// while the index is full.
TEST(PrefixIndexTest, KnownTextsAreFoundWhereverTheyAre) {
  const size_t budget = 1 << 20;
  PrefixIndex index({.budget_bytes = budget});
  std::vector<std::thread> loops;
  for (uint32_t loop = 0; loop < 2; ++loop) {
    loops.emplace_back([&, loop] {
      Rng rng(loop);
      for (int i = 0; i < 2000; ++i) {
        const auto family = rng.below(8);
        const std::string shared(5000 + 300 * family, static_cast<char>('a' + family));
        const auto text =
            std::make_shared<const std::string>(shared + std::to_string(rng.next()) + std::string(1000, 'q'));
        const PrefixMatch before = index.match(*text);
        ASSERT_LT(before.matched_bytes, text->size());
        if (index.insert(*text, loop, SIZE_MAX, {.owner = text, .place = before.place}) == 0) {
          index.flush();  // there was no room
          continue;
        }
        if (i % 8 == 0) index.flush();
        const PrefixMatch match = index.match(*text + "!");
        ASSERT_LE(match.matched_bytes, text->size());
        // Else others have pushed it out of the latest that are looked at, or out of the index.
        if (match.matched_bytes == text->size()) {
          ASSERT_NE(std::ranges::count(match.workers(), loop), 0);
        }
      }
    });
  }
  for (auto& loop : loops) loop.join();
  index.flush();
  EXPECT_LE(index.stats().bytes, budget);
  EXPECT_GT(index.stats().evictions_budget, 0u);
}

TEST(PrefixIndexTest, L24StaysWithinItsBudgetUnderManyWriters) {
  const size_t budget = 2 << 20;
  PrefixIndex index({.budget_bytes = budget});
  std::vector<std::thread> writers;
  for (uint32_t w = 0; w < 3; ++w) {
    writers.emplace_back([&, w] {
      for (int i = 0; i < 5000; ++i) {
        index.insert("writer " + std::to_string(w) + " text " + std::to_string(i) + std::string(300, 'x'), w);
        if (i % 64 == 0) {
          EXPECT_LE(index.stats().bytes, budget);
        }
      }
    });
  }
  for (auto& writer : writers) writer.join();
  index.flush();
  EXPECT_LE(index.stats().bytes, budget);
  EXPECT_GT(index.stats().inserts, 0u);
}

TEST(PrefixIndexTest, ReportsOnItsOwnThreadWhatWasInsertedBefore) {
  PrefixIndex index({});
  index.insert("some text", 3);
  std::promise<PrefixIndexReport> told;
  index.report(10, [&](PrefixIndexReport report) { told.set_value(std::move(report)); });
  const auto report = told.get_future().get();
  ASSERT_EQ(report.prefixes.size(), 1u);
  EXPECT_EQ(report.prefixes[0].bytes, 9u);
  EXPECT_EQ(report.worker_bytes, (std::vector<std::pair<uint32_t, size_t>>{{3, 9}}));
}

TEST(PrefixIndexTest, BeginsAtTheSmallestAndTheLargestBudget) {
  for (const size_t budget : {size_t{64} << 10, size_t{1'000'000'000'000'000}}) {
    PrefixIndex index({.budget_bytes = budget});
    index.insert("hello", 1);
    index.flush();
    EXPECT_EQ(index.match("hello").num_holders, 1) << budget;
  }
}

TEST(PrefixIndexTest, AnOversizedTextIsCutNotRefused) {
  PrefixIndex index({.budget_bytes = 1 << 20});
  const std::string text(4 << 20, 'y');
  index.insert(text, 1);
  index.flush();
  const PrefixMatch match = index.match(text);
  EXPECT_EQ(match.num_holders, 1);
  EXPECT_GT(match.matched_bytes, size_t{30'000});
  EXPECT_LE(index.stats().bytes, size_t{1} << 20);
}

}  // namespace
}  // namespace sluice::routing
