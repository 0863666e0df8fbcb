#include "gateway/policy/manual.h"

#include <gtest/gtest.h>

#include "gateway/policy/policy_fixture.h"
#include "gateway/policy/round_robin.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

class ManualTest : public testing::Test {
 protected:
  Choice choose(const Manual& policy, std::string_view key) {
    return policy.choose(fleet_.view(), {.routing_key = key, .now = now_, .prefix = {}}, rng_);
  }

  TestFleet fleet_{0, 0, 0, 0};
  TimePoint now_{};
  Rng rng_{1};
};

TEST_F(ManualTest, AKeyKeepsItsWorkerWhateverTheLoad) {
  const Manual policy(Manual::Assignment::kMinLoad, 4h);
  const Choice first = choose(policy, "a");
  EXPECT_EQ(first.reason, Reason::kKeyAssigned);
  fleet_.load(*first.worker).requests = 1000;
  const Choice again = choose(policy, "a");
  EXPECT_EQ(again.worker, first.worker);
  EXPECT_EQ(again.reason, Reason::kRoutingKey);
  EXPECT_NE(choose(policy, "b").worker, first.worker) << "min_load looks at the load";
  EXPECT_EQ(policy.routing_keys()->size(), 2u);
}

TEST_F(ManualTest, AKeyWhoseWorkerIsOutGetsASecondOneAndGoesBackToTheFirst) {
  const Manual policy(Manual::Assignment::kRandom, 4h);
  const uint32_t first = *choose(policy, "a").worker;
  TestFleet all{0, 0, 0, 0};
  fleet_.take_out(first);
  const Choice moved = choose(policy, "a");
  EXPECT_EQ(moved.reason, Reason::kKeyMoved);
  const uint32_t second = *moved.worker;
  EXPECT_NE(second, first);
  EXPECT_EQ(choose(policy, "a").worker, second);
  const Choice back = policy.choose(all.view(), {.routing_key = "a", .now = now_, .prefix = {}}, rng_);
  EXPECT_EQ(back.worker, first);
}

TEST_F(ManualTest, MinGroupCountsKeysAndNotRequests) {
  const Manual policy(Manual::Assignment::kMinGroup, 4h);
  fleet_.load(0).requests = 100;
  for (int i = 0; i < 8; ++i) choose(policy, std::to_string(i));
  for (uint32_t worker = 0; worker < 4; ++worker) EXPECT_EQ(policy.routing_keys()->keys_of(worker), 2);
}

TEST_F(ManualTest, AnIdleKeyIsForgotten) {
  const Manual policy(Manual::Assignment::kRandom, 10s);
  choose(policy, "a");
  now_ += 10s;
  EXPECT_EQ(choose(policy, "a").reason, Reason::kRoutingKey) << "used again in time";
  now_ += 11s;
  EXPECT_EQ(choose(policy, "b").reason, Reason::kKeyAssigned);
  EXPECT_EQ(policy.routing_keys()->size(), 1u);
}

TEST_F(ManualTest, WithoutAKeyNothingIsRemembered) {
  const Manual policy(Manual::Assignment::kRandom, 4h);
  EXPECT_TRUE(choose(policy, "").worker);
  EXPECT_EQ(policy.routing_keys()->size(), 0u);
}

TEST_F(ManualTest, InFrontOfAnotherPolicyOnlyKeysStick) {
  const Manual policy(std::make_unique<RoundRobin>(), 4h);
  EXPECT_EQ(choose(policy, "").worker, 0u);
  EXPECT_EQ(choose(policy, "a").worker, 1u) << "the other policy assigns";
  EXPECT_EQ(choose(policy, "").worker, 2u);
  EXPECT_EQ(choose(policy, "a").worker, 1u);
  EXPECT_EQ(choose(policy, "").worker, 3u) << "and keys do not move it on";
}

TEST(RoutingKeysTest, KeysThatBeginAlikeAreDifferentKeys) {
  RoutingKeys keys(1h);
  const TimePoint now{};
  const auto all = [](uint32_t) { return true; };
  keys.assign("session-1", 7, now);
  EXPECT_EQ(keys.find("session-1", now, all), 7u);
  EXPECT_EQ(keys.find("session-12", now, all), RoutingKeys::kNew);
  EXPECT_EQ(keys.find("session-", now, all), RoutingKeys::kNew);
}

TEST(RoutingKeysTest, ThePlaceForKeysIsBounded) {
  RoutingKeys keys(1h, /*max_keys=*/100);
  const auto all = [](uint32_t) { return true; };
  TimePoint now{};
  for (int i = 0; i < 1000; ++i) {
    keys.assign(std::string(1000, 'x') + std::to_string(i), static_cast<uint32_t>(i % 3), now += 1ms);
    keys.find(std::string(1000, 'x') + "0", now, all);  // stays in use
  }
  EXPECT_EQ(keys.size(), 100u);
  EXPECT_EQ(keys.keys_of(0) + keys.keys_of(1) + keys.keys_of(2), 100);
  EXPECT_EQ(keys.find(std::string(1000, 'x') + "0", now, all), 0u);
  EXPECT_EQ(keys.find(std::string(1000, 'x') + "1", now, all), RoutingKeys::kNew) << "unused for longest";
}

TEST(RoutingKeysTest, AThirdWorkerTakesThePlaceOfTheFirst) {
  RoutingKeys keys(1h);
  const TimePoint now{};
  for (const uint32_t worker : {1u, 2u, 3u}) keys.assign("k", worker, now);
  EXPECT_EQ(keys.find("k", now, [](uint32_t worker) { return worker == 1; }), RoutingKeys::kNone);
  EXPECT_EQ(keys.find("k", now, [](uint32_t) { return true; }), 2u);
  EXPECT_EQ(keys.keys_of(3), 1);
  EXPECT_EQ(keys.keys_of(2), 0);
}

}  // namespace
}  // namespace sluice::gateway
