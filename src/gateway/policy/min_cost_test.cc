#include "gateway/policy/min_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "gateway/policy/policy_fixture.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

class MinCostTest : public testing::Test {
 protected:
  static constexpr int64_t kPrompt = 2000;  // tokens; 250 ms of an engine that nothing is known of

  Choice choose(const TestFleet& fleet, double rate = 0, std::initializer_list<uint32_t> holders = {}) {
    RequestFacts facts{.prompt_tokens = kPrompt, .now = now_, .prefix = {}};
    facts.prefix.total_bytes = 1000;
    facts.prefix.matched_bytes = static_cast<size_t>(1000 * rate);
    for (const uint32_t worker : holders) facts.prefix.holders[facts.prefix.num_holders++] = worker;
    return MinCost().choose(fleet.view(), facts, rng_);
  }

  const TimePoint now_{1s};
  Rng rng_{1};
};

TEST_F(MinCostTest, TheHolderIsWorthAQueueThatIsShorterThanThePrefill) {
  TestFleet fleet({0, 0});
  fleet.load(1).prefill.dispatch(now_, 1000);
  const Choice choice = choose(fleet, 0.9, {1});
  EXPECT_EQ(choice.worker, 1u);
  EXPECT_EQ(choice.reason, Reason::kPrefixHeld);
  EXPECT_DOUBLE_EQ(choice.match_rate, 0.9);
  EXPECT_TRUE(choice.insert_prefix);
}

TEST_F(MinCostTest, AQueueThatIsLongerThanThePrefillMakesAnotherHolder) {
  TestFleet fleet({0, 0});
  fleet.load(1).prefill.dispatch(now_, 2300);
  const Choice choice = choose(fleet, 0.9, {1});
  EXPECT_EQ(choice.worker, 0u);
  EXPECT_EQ(choice.reason, Reason::kLeastCost);
  EXPECT_TRUE(choice.insert_prefix);
}

TEST_F(MinCostTest, ASaturatedWorkerChangesNothingForTheOthers) {
  TestFleet fleet({500, 1, 0});
  fleet.load(0).prefill.dispatch(now_, 1e6);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(choose(fleet, 0.5, {1}).worker, 1u);
}

TEST_F(MinCostTest, ABeliefThatIsOftenWrongCountsForLess) {
  TestFleet fleet({0, 0});
  fleet.load(1).prefill.dispatch(now_, 1000);
  for (int i = 0; i < 60; ++i) fleet.load(1).belief.reported(0.9, 0.27);
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 0u);
}

TEST_F(MinCostTest, AWorkerThatHasAnsweredNothingIsTakenToBeAsFastAsTheOthers) {
  TestFleet fleet({0, 0});
  auto& holder = fleet.load(1).prefill;
  auto first = holder.dispatch(now_, kPrompt);
  holder.first_token(first, now_ + 20ms);
  const MinCost policy;
  RequestFacts facts{.prompt_tokens = kPrompt, .now = now_ + 20ms, .prefix = {}};
  facts.prefix.total_bytes = facts.prefix.matched_bytes = 1000;
  facts.prefix.holders[facts.prefix.num_holders++] = 1;
  EXPECT_EQ(policy.choose(fleet.view(), facts, rng_).worker, 1u);
  // 40 ms of work, where the prompt costs 20 ms.
  for (int i = 0; i < 2; ++i) holder.dispatch(facts.now, kPrompt);
  EXPECT_EQ(policy.choose(fleet.view(), facts, rng_).worker, 0u);
}

TEST_F(MinCostTest, AFullPoolCostsMoreThanAPrefill) {
  TestFleet fleet({0, 0});
  for (size_t worker = 0; worker < 2; ++worker) fleet.load(worker).polled_tokens = 1;
  fleet.load(1).polled_kv_usage = 0.9;
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 0u);
  fleet.load(1).polled_kv_usage = 0.5;
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 1u);
}

// Reports are as old as the time between two polls: what differs meanwhile between two workers that both have room must
// not tell them apart.
TEST_F(MinCostTest, APoolWithRoomCostsNothing) {
  TestFleet fleet({0, 0});
  for (size_t worker = 0; worker < 2; ++worker) fleet.load(worker).polled_tokens = 1;
  const auto price = [&](double usage) {
    fleet.load(0).polled_kv_usage = usage;
    return MinCost().weigh(fleet.usable()[0], {.prompt_tokens = kPrompt, .now = now_, .prefix = {}});
  };
  EXPECT_EQ(price(0.5), price(0));
  EXPECT_LT(price(0.7), 1.05 * price(0));
  EXPECT_GT(price(0.95), 5 * price(0));
}

TEST_F(MinCostTest, AReportOfAFullPoolEndsWithTheRequestsThatFilledIt) {
  TestFleet fleet({0, 0});
  for (size_t worker = 0; worker < 2; ++worker) fleet.load(worker).polled_tokens = 100'000;
  fleet.load(1).polled_kv_usage = 0.9;
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 0u);
  fleet.load(1).tokens_since_poll = 50'000;
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 0u);
  fleet.load(1).tokens_since_poll = -50'000;
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 1u);
}

// Those that come behind it wait for what is computed there again.
TEST_F(MinCostTest, WhatSomebodyHoldsIsDearerToComputeWhereOthersWait) {
  TestFleet fleet({0, 0});
  fleet.load(0).prefill.dispatch(now_, 640);   // 80 ms
  fleet.load(1).prefill.dispatch(now_, 2880);  // 360 ms
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 1u) << "80 and 1.1 times 250 ms are less than 360 and 1.1 times 25";
  EXPECT_EQ(choose(fleet).worker, 0u) << "nobody holds it";
  TestFleet idle({0, 0});
  idle.load(1).prefill.dispatch(now_, 2880);
  EXPECT_EQ(choose(idle, 0.9, {1}).worker, 0u);
}

// Each waits for less than a copy takes, and rightly stays; together they have paid for one.
class CopiesTest : public MinCostTest {
 protected:
  // A request each `apart`, and `wait` of queue before each of the two workers; how many made the first one a holder.
  int copies(Duration apart, Duration wait_at_other, Duration wait_at_holder) {
    const MinCost policy;
    TestFleet fleet({0, 0});
    int made = 0;
    TimePoint now = now_;
    const auto keep = [&](size_t worker, Duration wait) {
      auto& prefill = fleet.load(worker).prefill;
      while (prefill.wait(now) < wait) prefill.dispatch(now, 8);  // 1 ms each
    };
    for (int i = 0; i < 1000; ++i, now += apart) {
      keep(0, wait_at_other);
      keep(1, wait_at_holder);
      RequestFacts facts{.prompt_tokens = kPrompt, .now = now, .prefix = {}};
      facts.prefix.total_bytes = 1000;
      facts.prefix.matched_bytes = 900;
      facts.prefix.place = {.node = 1, .born = 1, .bytes = 900};
      facts.prefix.holders[facts.prefix.num_holders++] = 1;
      const Choice choice = policy.choose(fleet.view(), facts, rng_);
      if (choice.worker == 1u) {
        EXPECT_EQ(choice.reason, Reason::kPrefixHeld);
        continue;
      }
      EXPECT_EQ(choice.reason, Reason::kHoldersBusy);
      EXPECT_EQ(choice.match_rate, 0);
      ++made;
    }
    return made;
  }
};

TEST_F(CopiesTest, AnIdleWorkerComesToHoldAPrefixWhoseRequestsKeepWaiting) {
  EXPECT_GT(copies(10ms, 0ms, 100ms), 0);
  EXPECT_GT(copies(20ms, 0ms, 200ms), 0);
}

TEST_F(CopiesTest, ABusyOneDoesNot) { EXPECT_EQ(copies(10ms, 60ms, 160ms), 0); }

TEST_F(CopiesTest, NeitherWhereFewWaitNorInABurst) {
  EXPECT_EQ(copies(100ms, 0ms, 100ms), 0) << "one stands in line at a time";
  EXPECT_EQ(copies(50us, 0ms, 100ms), 0) << "all within a fifth of what a copy takes";
}

TEST_F(MinCostTest, AnotherCopyMustBeWorthWhatItPushesOut) {
  TestFleet fleet({0, 0});
  fleet.load(1).prefill.dispatch(now_, 1900);
  EXPECT_EQ(choose(fleet, 0.9, {1}).worker, 1u) << "1900 tokens of waiting are less than 1.1 times 1800";
}

// Half of what full workers drop has to be computed again, and half of what that pushes out, and so on: once more.
TEST_F(MinCostTest, ACopyCostsWhatItPushesOutTheMoreTheMoreOfThatIsShared) {
  TestFleet fleet({0, 0});
  fleet.load(1).prefill.dispatch(now_, 3000);
  const auto chosen = [&](float shared_drops) {
    RequestFacts facts{.prompt_tokens = kPrompt, .now = now_, .prefix = {}};
    facts.prefix.total_bytes = 1000;
    facts.prefix.matched_bytes = 900;
    facts.prefix.shared_drops = shared_drops;
    facts.prefix.holders[facts.prefix.num_holders++] = 1;
    return MinCost().choose(fleet.view(), facts, rng_).worker;
  };
  EXPECT_EQ(chosen(0), 0u) << "3000 tokens of waiting are more than 1.1 times 1800";
  EXPECT_EQ(chosen(0.5F), 1u) << "and less than twice 1800";
  fleet.load(0).belief.capacity(1'000'000);
  EXPECT_EQ(chosen(0.5F), 0u) << "an empty cache drops nothing";
  fleet.load(0).belief.sent(4'000'000);
  EXPECT_EQ(chosen(0.5F), 1u);
  fleet.load(1).prefill.dispatch(now_, 10'000);
  EXPECT_EQ(chosen(1), 0u) << "but nobody waits for ever";
}

TEST_F(MinCostTest, WhereAllCostTheSameTheOneWithFewestRequestsServes) {
  EXPECT_EQ(choose(TestFleet({3, 1, 2})).worker, 1u);
}

// Against the slow, obvious twin, which weighs everybody: of those that a choice among many has to look at, nobody who
// may be used is cheaper by more than what counts as alike.
TEST_F(MinCostTest, OfManyNoHolderAndNoneOfTheLightestIsCheaper) {
  for (int round = 0; round < 2000; ++round) {
    TestFleet fleet;
    TestGate gate;
    for (uint32_t place = 0; place < 50; ++place) {
      WorkerLoad& load = fleet.add(3 * place);
      load.requests = static_cast<int64_t>(rng_.below(6));
      load.prefill.dispatch(now_, static_cast<double>(rng_.below(4000)));
      if (rng_.below(4) == 0) gate.resting.insert(place);
      if (rng_.below(20) == 0) gate.tried.insert(place);
    }
    RequestFacts facts{.prompt_tokens = kPrompt, .now = now_, .prefix = {}};
    facts.prefix.total_bytes = 1000;
    for (uint32_t place = 0; place < 50; ++place) {
      if (rng_.below(8) == 0) facts.prefix.add(3 * place, 100 + 200 * rng_.below(5));
    }
    const MinCost policy;
    const Choice choice = policy.choose(fleet.many(gate), facts, rng_);
    ASSERT_TRUE(choice.worker);
    ASSERT_EQ(gate.of(*choice.worker / 3), Gate::Pass::kYes);
    const double price = policy.weigh(fleet.usable()[*choice.worker / 3], facts);
    ASSERT_DOUBLE_EQ(choice.scores[0].cost, price);
    int64_t fewest = 6;
    for (uint32_t place = 0; place < 50; ++place) {
      if (gate.of(place) == Gate::Pass::kYes) fewest = std::min<int64_t>(fewest, fleet.load(place).requests);
    }
    std::vector<double> light;
    for (uint32_t place = 0; place < 50; ++place) {
      if (gate.of(place) != Gate::Pass::kYes) continue;
      const Candidate& candidate = fleet.usable()[place];
      const double its = policy.weigh(candidate, facts);
      if (facts.prefix.rate_of(candidate.worker) > 0) {
        ASSERT_LE(price, std::max(its + 0.0005, its * 1.02)) << place;
      }
      if (fleet.load(place).requests == fewest) light.push_back(its);
    }
    // It looks at six of the lightest, and in what order is chance: with no more than six it knows them all.
    if (light.size() > FleetView::kLightest || !gate.tried.empty()) continue;
    const double lightest = *std::ranges::min_element(light);
    ASSERT_LE(price, std::max(lightest + 0.0005, lightest * 1.02));
  }
}

}  // namespace
}  // namespace sluice::gateway
