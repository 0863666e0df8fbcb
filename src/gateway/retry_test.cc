#include "gateway/retry.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

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

TEST(RetryTest, NoPauseStaysNone) {
  const RetryRules rules{.initial = 0s, .multiplier = 1000};
  Rng rng(1);
  EXPECT_EQ(rules.pause(200, std::nullopt, rng), 0s);
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

int spend_all(RetryBudget& budget, TimePoint now) {
  int spent = 0;
  while (budget.spend(now)) ++spent;
  return spent;
}

TEST(RetryBudgetTest, IsATenthOfTheRequestsOfTenSeconds) {
  RetryBudget budget;
  const TimePoint begin{100s};
  for (int second = 0; second < 10; ++second) {
    for (int i = 0; i < 50; ++i) budget.earn(begin + std::chrono::seconds(second));
  }
  EXPECT_EQ(spend_all(budget, begin + 9s), 50);
  EXPECT_FALSE(budget.spend(begin + 9s + 999ms));
  EXPECT_FALSE(budget.spend(begin + 18s)) << "those that it had are spent for ten seconds";
  EXPECT_TRUE(budget.spend(begin + 19s));
}

TEST(RetryBudgetTest, AQuietGatewayHasTenInTenSeconds) {
  RetryBudget budget;
  const TimePoint begin{100s};
  EXPECT_EQ(spend_all(budget, begin), 10);
  for (int i = 0; i < 100; ++i) budget.earn(begin);
  EXPECT_FALSE(budget.spend(begin + 1s)) << "a floor, and nothing on top";
  budget.earn(begin + 1s);
  for (int i = 0; i < 9; ++i) budget.earn(begin + 1s);
  EXPECT_EQ(spend_all(budget, begin + 1s), 1);
  EXPECT_EQ(spend_all(budget, begin + 10s), 9) << "one was spent within the last ten seconds";
}

TEST(RetryBudgetTest, DoesNotSaveUpWithoutEnd) {
  RetryBudget budget;
  for (int i = 0; i < 100'000; ++i) budget.earn(TimePoint{100s});
  EXPECT_EQ(spend_all(budget, TimePoint{110s}), 10);
}

TEST(RetryBudgetTest, CountsAllThatComesAtOnce) {
  RetryBudget budget;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget] {
      for (int i = 0; i < 1000; ++i) budget.earn(TimePoint{100s + std::chrono::milliseconds(i)});
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(spend_all(budget, TimePoint{101s}), 400);
}

// A fleet that can do half of what it is asked, and says so to the rest (D8). Each request may try five times.
double attempts_per_request(double per_second) {
  RetryBudget budget;
  Rng rng(7);
  int64_t requests = 0, attempts = 0;
  for (double at = 100; at < 400; at += 1 / per_second) {
    const TimePoint now{std::chrono::duration_cast<Duration>(std::chrono::duration<double>(at))};
    budget.earn(now);
    ++requests;
    for (int tries = 1;; ++tries) {
      ++attempts;
      const bool served = rng.uniform() < 0.5;
      if (served || tries == 5 || !budget.spend(now)) break;
    }
  }
  return static_cast<double>(attempts) / static_cast<double>(requests);
}

TEST(RetryBudgetTest, D8AnOverloadedFleetIsAskedATenthMoreAtMost) {
  for (const double per_second : {10.0, 20.0, 100.0, 1000.0}) {
    EXPECT_LE(attempts_per_request(per_second), 1.1 + 1e-9) << per_second;
    EXPECT_GT(attempts_per_request(per_second), 1.09) << per_second << ": what there is, is used";
  }
  // Below ten per second the floor is more than a tenth: one retry a second.
  EXPECT_NEAR(attempts_per_request(5), 1.2, 0.01);
  EXPECT_LE(attempts_per_request(2), 1.5);
}

}  // namespace
}  // namespace sluice::gateway
