#include "gateway/retry.h"

#include <gtest/gtest.h>

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

TEST(RetryTest, PausesGrowWithinTheirJitter) {
  const RetryRules rules;
  Rng rng(1);
  const double expected[] = {0.05, 0.075, 0.1125, 0.16875};
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 4; ++i) {
      const double pause = seconds(rules.pause(i, std::nullopt, rng));
      EXPECT_GE(pause, expected[i] * 0.8 - 1e-9);
      EXPECT_LE(pause, expected[i] * 1.2 + 1e-9);
    }
  }
}

TEST(RetryTest, PausesStopGrowingAtTheLongest) {
  const RetryRules rules{.longest = 1s, .jitter = 0};
  Rng rng(1);
  EXPECT_EQ(rules.pause(1000, std::nullopt, rng), 1s);
}

TEST(RetryTest, ObeysRetryAfterUpToTheLongestPause) {
  const RetryRules rules{.longest = 3s, .jitter = 0};
  Rng rng(1);
  EXPECT_EQ(rules.pause(0, 2s, rng), 2s);
  EXPECT_EQ(rules.pause(0, 60s, rng), 3s);
  EXPECT_EQ(rules.pause(0, 0s, rng), 50ms) << "it only lengthens";
}

TEST(RetryTest, TakesItsRulesFromTheOptions) {
  const auto rules = RetryRules::from(
      gateway_option_table()
          .parse({"--retry-max-retries", "7", "--retry-initial-backoff-ms", "2", "--retry-max-backoff-ms", "3",
                  "--retry-backoff-multiplier", "4", "--retry-jitter-factor", "0.5"})
          .value());
  EXPECT_EQ(rules.attempts, 7);
  EXPECT_EQ(rules.initial, 2ms);
  EXPECT_EQ(rules.longest, 3ms);
  EXPECT_EQ(rules.multiplier, 4);
  EXPECT_EQ(rules.jitter, 0.5);
  EXPECT_EQ(RetryRules::from(gateway_option_table().parse({"--disable-retries"}).value()).attempts, 1);
}

TEST(RetryBudgetTest, IsATenthOfTrafficAboveItsFloor) {
  RetryBudget budget;
  const TimePoint now{100s};
  for (int i = 0; i < 50; ++i) budget.earn();
  int spent = 0;
  while (budget.spend(now)) ++spent;
  EXPECT_EQ(spent, 10 + 5);
  EXPECT_TRUE(budget.spend(now + 1s));
}

TEST(RetryBudgetTest, DoesNotSaveUpWithoutEnd) {
  RetryBudget budget;
  for (int i = 0; i < 100'000; ++i) budget.earn();
  int spent = 0;
  while (budget.spend(TimePoint{100s})) ++spent;
  EXPECT_EQ(spent, 10 + 100);
}

}  // namespace
}  // namespace sluice::gateway
