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
  belief.capacity(200'000);
  belief.sent(100'000);
  for (int i = 0; i < 64; ++i) belief.reported(0.9, 0);
  EXPECT_GT(belief.limit_bytes(), 90'000u) << "63 of 64 equal prompts find nothing cached: that is no smaller cache";
}

TEST(CacheBeliefTest, TheEnginesOwnFigureBoundsItAndARestartKeepsTheSize) {
  CacheBelief belief;
  belief.capacity(500'000);
  EXPECT_EQ(belief.limit_bytes(), 500'000u);
  belief.capacity(900'000);
  EXPECT_EQ(belief.limit_bytes(), 500'000u);
  for (int i = 0; i < 30; ++i) belief.reported(0.9, 0.1);
  belief.restart();
  EXPECT_EQ(belief.share(), 1);
  EXPECT_LE(belief.limit_bytes(), 500'000u);
}

}  // namespace
}  // namespace sluice::routing
