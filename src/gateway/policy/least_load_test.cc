#include "gateway/policy/least_load.h"

#include <gtest/gtest.h>

#include "gateway/policy/policy_fixture.h"

namespace sluice::gateway {
namespace {

class LeastLoadTest : public testing::Test {
 protected:
  Choice choose(const TestFleet& fleet) { return policy_.choose(fleet.view(), {}, rng_); }

  const LeastLoad policy_{
      LeastLoad::Rules{.kv_pressure_weight = 0.15, .default_throughput = 2000, .mean_prefill_tokens = 1024}};
  Rng rng_{1};
};

TEST_F(LeastLoadTest, GoesByRequestsWhereNobodyReports) {
  const Choice choice = choose(TestFleet({3, 1, 2}));
  EXPECT_EQ(choice.worker, 1u);
  EXPECT_EQ(choice.scores[0].cost, 1);
}

TEST_F(LeastLoadTest, AddsWhatWasSentSinceTheReportToTheQueue) {
  TestFleet fleet({0, 0});
  fleet.load(0).polled_tokens = 10;
  fleet.load(0).polled_waiting_tokens = 100;
  fleet.load(0).prompt_since_poll = 900;
  fleet.load(1).polled_tokens = 10;
  fleet.load(1).polled_waiting_tokens = 800;
  const Choice choice = choose(fleet);
  EXPECT_EQ(choice.worker, 1u);
  EXPECT_DOUBLE_EQ(choice.scores[0].cost, 800.0 / 2000);
}

TEST_F(LeastLoadTest, AFasterWorkerMayHaveALongerQueue) {
  TestFleet fleet({0, 0});
  fleet.load(0).polled_tokens = fleet.load(1).polled_tokens = 10;
  fleet.load(0).polled_waiting_tokens = 1000;
  fleet.load(0).polled_throughput = 10'000;
  fleet.load(1).polled_waiting_tokens = 500;
  fleet.load(1).polled_throughput = 1000;
  EXPECT_EQ(choose(fleet).worker, 0u);
}

TEST_F(LeastLoadTest, AFullPoolIsDear) {
  TestFleet fleet({0, 0});
  fleet.load(0).polled_tokens = fleet.load(1).polled_tokens = 10;
  fleet.load(0).polled_kv_usage = 1.0;
  fleet.load(1).polled_kv_usage = 0.5;
  fleet.load(1).polled_waiting_tokens = 10'000;
  const Choice choice = choose(fleet);
  EXPECT_EQ(choice.worker, 1u);
  EXPECT_DOUBLE_EQ(choice.scores[0].cost, 10'000.0 / 2000 + 0.15) << "0.15 * 0.5 / (1 - 0.5)";
}

TEST_F(LeastLoadTest, AWorkerWithoutAReportIsJudgedByItsRequests) {
  TestFleet fleet({1, 0});
  fleet.load(1).polled_tokens = 10;
  fleet.load(1).polled_waiting_tokens = 1023;
  EXPECT_EQ(choose(fleet).worker, 1u);
  fleet.load(1).polled_waiting_tokens = 1025;
  EXPECT_EQ(choose(fleet).worker, 0u);
}

}  // namespace
}  // namespace sluice::gateway
