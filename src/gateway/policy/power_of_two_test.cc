#include "gateway/policy/power_of_two.h"

#include <gtest/gtest.h>

#include <vector>

namespace sluice::gateway {
namespace {

TEST(PowerOfTwoTest, TakesTheWorkerWithFewerRequestsWhenNobodyReportsLoad) {
  WorkerLoad light, heavy;
  heavy.requests = 5;
  const std::vector<Candidate> usable{{0, &heavy}, {1, &light}};
  Rng rng(1);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(PowerOfTwo().choose(FleetView(usable), {}, rng).worker, 1u);
}

TEST(PowerOfTwoTest, CountsTokensSentSinceTheReport) {
  WorkerLoad a, b;
  a.polled_tokens = 100;
  a.tokens_since_poll = 500;
  b.polled_tokens = 400;
  const std::vector<Candidate> usable{{0, &a}, {1, &b}};
  Rng rng(1);
  const Choice choice = PowerOfTwo().choose(FleetView(usable), {}, rng);
  EXPECT_EQ(choice.worker, 1u);
  ASSERT_EQ(choice.num_scores, 2);
  EXPECT_EQ(choice.scores[0].cost, 400);
  EXPECT_EQ(choice.scores[1].cost, 600);
}

TEST(PowerOfTwoTest, AWorkerWithoutAReportIsComparedByRequests) {
  WorkerLoad reported, silent;
  reported.polled_tokens = 0;
  reported.requests = 3;
  silent.requests = 1;
  const std::vector<Candidate> usable{{0, &reported}, {1, &silent}};
  Rng rng(1);
  EXPECT_EQ(PowerOfTwo().choose(FleetView(usable), {}, rng).worker, 1u);
}

}  // namespace
}  // namespace sluice::gateway
