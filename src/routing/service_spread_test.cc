#include "routing/service_spread.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/rng.h"

namespace sluice::routing {
namespace {

using namespace std::chrono_literals;

constexpr TimePoint kNow(1h);

// Prompts of 10,000 tokens that are predicted to take 20 s and take `ratios` times that.
MostService after(const std::vector<double>& ratios) {
  ServiceSpread spread;
  for (const double ratio : ratios) {
    spread.answered(10'000, kNow);
    spread.computed(10'000, 20, 20 * ratio, kNow);
  }
  return spread.most(kNow);
}

TEST(ServiceSpreadTest, KnowsLittleOfFewAndMoreOfMany) {
  EXPECT_EQ(after({}).of(10'000), 2);
  EXPECT_EQ(after({1}).of(10'000), 2);
  EXPECT_NEAR(after(std::vector<double>(4, 1)).of(10'000), 1.25, 1e-6);
  EXPECT_NEAR(after(std::vector<double>(50, 1)).of(10'000), 1.02, 1e-6);
  EXPECT_NEAR(after(std::vector<double>(50, 1.2)).of(10'000), 1.22, 1e-6) << "a fit that is too low shows";
  EXPECT_EQ(after(std::vector<double>(50, 0.5)).of(10'000), 1) << "never less than predicted";
  EXPECT_EQ(after({0, 2, 0, 2, 0, 2}).of(10'000), 2) << "of prompts that are computed together nothing is known";
}

TEST(ServiceSpreadTest, HardlyAnyPromptTakesLonger) {
  Rng rng(1);
  std::vector<double> ratios(40);
  const auto draw = [&] { return 0.85 + 0.3 * rng.uniform(); };
  for (double& ratio : ratios) ratio = draw();
  const double most = after(ratios).of(10'000);
  EXPECT_LT(most, 1.4);
  for (int i = 0; i < 10'000; ++i) ASSERT_GE(most, draw());
}

TEST(ServiceSpreadTest, ShortPromptsDoNotSpeakForLongOnes) {
  ServiceSpread spread;
  spread.answered(10'000, kNow);
  spread.computed(10'000, 20, 30, kNow);
  for (int i = 0; i < 300; ++i) spread.computed(50, 0.1, 0.1, kNow);
  EXPECT_GT(spread.most(kNow).of(10'000), 1.5) << "the one of 20 s took 30";
}

TEST(ServiceSpreadTest, WhatIsLongerThanAnyIsHardlyKnown) {
  const MostService most = after(std::vector<double>(50, 1));
  EXPECT_NEAR(most.of(12'000), 1.02 * 1.2, 1e-3) << "as good as as long, but that attention grows with the square";
  EXPECT_NEAR(most.of(15'000), 3, 1e-6);
  EXPECT_NEAR(most.of(100'000), 20, 1e-6);
  ServiceSpread cached;
  for (int i = 0; i < 50; ++i) {
    cached.answered(10'000, kNow);
    cached.computed(500, 1, 1, kNow);
  }
  EXPECT_LT(cached.most(kNow).of(500), 1.1);
  EXPECT_EQ(cached.most(kNow).of(10'000), 2) << "as long ones were answered, and never computed";
}

TEST(ServiceSpreadTest, WhatWasSeenCountsForTwentyMinutesAtMost) {
  ServiceSpread spread;
  for (int i = 0; i < 50; ++i) {
    spread.answered(10'000, kNow);
    spread.computed(10'000, 20, 20, kNow);
  }
  EXPECT_LT(spread.most(kNow + 11min).of(10'000), 1.1);
  EXPECT_EQ(spread.most(kNow + 22min).of(10'000), 2) << "nobody came since";
  spread.answered(100, kNow + 22min);
  spread.computed(100, 0.2, 0.2, kNow + 22min);
  EXPECT_NEAR(spread.most(kNow + 22min).of(10'000), 200, 1e-3) << "a hundred times the longest of late";
}

}  // namespace
}  // namespace sluice::routing
