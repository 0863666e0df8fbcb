#include "routing/cache_belief.h"

#include <gtest/gtest.h>

namespace sluice::routing {
namespace {

constexpr size_t kNoLimit = SIZE_MAX;

TEST(CacheBeliefTest, AWorkerThatNeverReportsIsBelievedWholly) {
  CacheBelief belief;
  for (int i = 0; i < 100; ++i) {
    belief.sent(1000);
    belief.reported(0.9, 0);
  }
  EXPECT_FALSE(belief.confirmed());
  EXPECT_EQ(belief.share(), 1);
  EXPECT_EQ(belief.limit_bytes(), kNoLimit);
}

TEST(CacheBeliefTest, TheShareFollowsTheReports) {
  CacheBelief belief;
  for (int i = 0; i < 60; ++i) belief.reported(0.8, 0.4);
  EXPECT_TRUE(belief.confirmed());
  EXPECT_NEAR(belief.share(), 0.5, 0.01);
  for (int i = 0; i < 60; ++i) belief.reported(0.5, 0.9);
  EXPECT_NEAR(belief.share(), 1, 0.01) << "and is no more than all of it";
}

TEST(CacheBeliefTest, TheFirstMissSaysThatItHoldsLessThanItWasSent) {
  CacheBelief belief;
  belief.reported(0.9, 0.9);
  belief.sent(1'000'000);
  EXPECT_EQ(belief.limit_bytes(), kNoLimit) << "hits say nothing of a limit";
  belief.reported(0.9, 0);
  EXPECT_EQ(belief.limit_bytes(), 950'000u);
}

// A cache of 200 kB that is sent the prompts of 100 kB more than that, in turn: predictions fail until the limit is
// true.
TEST(CacheBeliefTest, TheLimitSettlesNearTheSizeOfTheCache) {
  constexpr double kTrue = 200'000;
  CacheBelief belief;
  belief.reported(0.9, 0.9);
  belief.sent(300'000);
  for (int i = 0; i < 3000; ++i) {
    const bool held = static_cast<double>(belief.limit_bytes()) <= kTrue;
    belief.reported(0.9, held ? 0.9 : 0);
    belief.sent(held ? 500 : 8000);
  }
  EXPECT_GT(belief.limit_bytes(), 0.9 * kTrue);
  EXPECT_LT(belief.limit_bytes(), 1.05 * kTrue);
}

TEST(CacheBeliefTest, ABatchThatBeginsAlikeIsOneObservation) {
  CacheBelief belief;
  belief.reported(0.9, 0.9);
  belief.capacity(25'000);
  belief.sent(100'000);
  for (int i = 0; i < 64; ++i) belief.reported(0.9, 0);
  EXPECT_EQ(belief.limit_bytes(), 95'000u) << "63 of 64 equal prompts find nothing cached: that is no smaller cache";
}

TEST(CacheBeliefTest, WhatIsMissedBeforeItCanBeFullIsNoMatterOfItsSize) {
  CacheBelief belief;
  belief.confirm();
  belief.capacity(50'000);
  for (int i = 0; i < 19; ++i) {
    belief.sent(10'000);
    belief.reported(1, 0);
  }
  EXPECT_EQ(belief.limit_bytes(), 200'000u);
  EXPECT_LT(belief.share(), 0.2) << "predictions were wrong all the same";
  belief.sent(10'000);
  belief.reported(1, 0);
  EXPECT_EQ(belief.limit_bytes(), 190'000u);
}

TEST(CacheBeliefTest, TheEnginesOwnFigureBoundsItAndARestartKeepsTheSize) {
  CacheBelief belief;
  belief.capacity(125'000);
  EXPECT_EQ(belief.limit_bytes(), 500'000u);
  belief.capacity(225'000);
  EXPECT_EQ(belief.limit_bytes(), 500'000u);
  for (int i = 0; i < 30; ++i) belief.reported(0.9, 0.1);
  belief.restart();
  EXPECT_EQ(belief.share(), 1);
  EXPECT_LE(belief.limit_bytes(), 500'000u);
}

// How much text a pool of tokens stands for is what answers say; until then 4 bytes for each.
TEST(CacheBeliefTest, APoolOfTokensHoldsAsMuchTextAsAnswersSay) {
  CacheBelief belief;
  belief.capacity(5'000);
  EXPECT_EQ(belief.limit_bytes(), 20'000u);
  belief.tokenized(0, 100);
  belief.tokenized(100, 0);
  EXPECT_EQ(belief.limit_bytes(), 20'000u) << "without text or tokens nothing is said";
  belief.tokenized(3'700, 577);
  EXPECT_NEAR(static_cast<double>(belief.limit_bytes()), 5'000 * 3'700. / 577, 1);
  for (int i = 0; i < 1000; ++i) belief.tokenized(4'000, 1'000);
  EXPECT_NEAR(static_cast<double>(belief.limit_bytes()), 20'000, 500);
  for (int i = 0; i < 1000; ++i) belief.tokenized(10, 10'000);
  EXPECT_NEAR(static_cast<double>(belief.limit_bytes()), 5'000, 100) << "a picture is thousands of tokens";
}

TEST(CacheBeliefTest, WhatMissesTaughtStaysWhateverATokenIs) {
  CacheBelief belief;
  belief.reported(0.9, 0.9);
  belief.capacity(25'000);
  belief.sent(100'000);
  belief.reported(0.9, 0);
  const size_t learned = belief.limit_bytes();
  EXPECT_EQ(learned, 95'000u);
  belief.tokenized(5'000, 1'000);
  EXPECT_EQ(belief.limit_bytes(), learned);
  for (int i = 0; i < 1000; ++i) belief.tokenized(1'000, 1'000);
  EXPECT_NEAR(static_cast<double>(belief.limit_bytes()), 25'000, 1'500) << "more than the pool it never holds";
}

TEST(CacheBeliefTest, WhatWasNotComputedAfterAllIsNoTextThatItWasSent) {
  CacheBelief belief;
  belief.confirm();
  belief.sent(1'000'000);
  belief.sent(500'000);
  belief.unsent(500'000);
  belief.reported(0.9, 0);
  EXPECT_NEAR(static_cast<double>(belief.limit_bytes()), 950'000, 1);
  belief.restart();
  belief.unsent(500'000);  // of the life before
  belief.sent(100'000);
  belief.reported(0.9, 0);
  EXPECT_NEAR(static_cast<double>(belief.limit_bytes()), 95'000, 1);
}

TEST(CacheBeliefTest, ItHasRoomUntilItWasSentWhatItCanHold) {
  CacheBelief belief;
  EXPECT_FALSE(belief.has_room()) << "nobody knows how much it holds";
  belief.sent(10'000);
  belief.capacity(5'000);
  EXPECT_TRUE(belief.has_room());
  belief.sent(10'000);
  EXPECT_FALSE(belief.has_room());
  belief.unsent(5'000);
  EXPECT_TRUE(belief.has_room());
  belief.sent(20'000);
  belief.forget_reports();
  EXPECT_FALSE(belief.has_room()) << "it is as full as before";
  belief.restart();
  EXPECT_TRUE(belief.has_room());
}

TEST(CacheBeliefTest, WhatIsReportedOfOtherPredictionsIsForgotten) {
  CacheBelief belief;
  for (int i = 0; i < 30; ++i) belief.reported(0.9, 0.3);
  EXPECT_LT(belief.share(), 0.4);
  belief.forget_reports();
  EXPECT_EQ(belief.share(), 1);
}

}  // namespace
}  // namespace sluice::routing
