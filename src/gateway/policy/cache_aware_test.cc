// The conformance vectors 1-14 of the SGLang gateway's rules that concern the choice, with our decisions where they
// differ.
#include "gateway/policy/cache_aware.h"

#include <gtest/gtest.h>

#include <set>

#include "gateway/policy/policy_fixture.h"

namespace sluice::gateway {
namespace {

class CacheAwareTest : public testing::Test {
 protected:
  // Workers 0, 1, 2, ... with these requests in flight.
  void fleet(std::initializer_list<int64_t> requests) {
    uint32_t worker = 0;
    for (const int64_t count : requests) fleet_.add(worker++).requests = count;
  }
  static RequestFacts matched(size_t bytes, size_t total, std::initializer_list<uint32_t> holders) {
    RequestFacts facts;
    facts.prefix.matched_bytes = bytes;
    facts.prefix.total_bytes = total;
    for (const uint32_t worker : holders) facts.prefix.holders[facts.prefix.num_holders++] = worker;
    return facts;
  }
  Choice choose(const CacheAware& policy, const RequestFacts& facts) {
    return policy.choose(fleet_.view(), facts, rng_);
  }

  const CacheAware defaults_{
      CacheAware::Rules{.cache_threshold = 0.3, .balance_abs_threshold = 64, .balance_rel_threshold = 1.5}};
  const CacheAware guide_{
      CacheAware::Rules{.cache_threshold = 0.5, .balance_abs_threshold = 32, .balance_rel_threshold = 1.5}};
  TestFleet fleet_;
  Rng rng_{1};
};

TEST_F(CacheAwareTest, ADifferenceEqualToTheAbsoluteThresholdIsBalanced) {
  fleet({0, 64});
  EXPECT_EQ(choose(defaults_, matched(10, 10, {1})).worker, 1u);
}

TEST_F(CacheAwareTest, ADifferenceAboveTheAbsoluteThresholdIsImbalanced) {
  fleet({0, 65});
  const Choice choice = choose(defaults_, matched(10, 10, {1}));
  EXPECT_EQ(choice.worker, 0u);
  EXPECT_EQ(choice.reason, Reason::kImbalanced);
  EXPECT_TRUE(choice.insert_prefix);
}

TEST_F(CacheAwareTest, BothRulesMustHoldForAnImbalance) {
  fleet({130, 195});
  EXPECT_EQ(choose(defaults_, matched(10, 10, {1})).reason, Reason::kPrefixHeld);
  fleet_.load(1).requests = 196;
  EXPECT_EQ(choose(defaults_, matched(10, 10, {1})).reason, Reason::kImbalanced);
}

TEST_F(CacheAwareTest, TheValuesOfTheTuningGuideWork) {
  fleet({10, 43});
  EXPECT_EQ(choose(guide_, matched(10, 10, {1})).reason, Reason::kImbalanced);
}

TEST_F(CacheAwareTest, AMatchRateEqualToTheThresholdIsAMiss) {
  fleet({0, 1});
  const Choice miss = choose(guide_, matched(3, 6, {1}));
  EXPECT_EQ(miss.worker, 0u);
  EXPECT_EQ(miss.reason, Reason::kPrefixMiss);
  EXPECT_TRUE(miss.insert_prefix);
  EXPECT_EQ(choose(guide_, matched(4, 6, {1})).worker, 1u);
}

TEST_F(CacheAwareTest, AnEmptyTextGoesToTheLeastLoaded) {
  fleet({3, 1, 2});
  EXPECT_EQ(choose(defaults_, matched(0, 0, {})).worker, 1u);
}

TEST_F(CacheAwareTest, AHolderThatMayNotBeUsedIsReplacedByTheLeastLoadedWhichLearnsThePrefix) {
  fleet({5, 2});
  const Choice choice = choose(defaults_, matched(10, 10, {77}));
  EXPECT_EQ(choice.worker, 1u);
  EXPECT_EQ(choice.reason, Reason::kHoldersGone);
  EXPECT_TRUE(choice.insert_prefix);
}

TEST_F(CacheAwareTest, TheLeastLoadedHolderIsChosen) {
  fleet({0, 9, 2});
  EXPECT_EQ(choose(defaults_, matched(10, 10, {1, 2})).worker, 2u);
}

TEST_F(CacheAwareTest, TiesAmongHoldersAreBrokenAtRandom) {
  fleet({4, 4, 4, 4});
  std::set<uint32_t> chosen;
  for (int i = 0; i < 100; ++i) chosen.insert(*choose(defaults_, matched(10, 10, {1, 3})).worker);
  EXPECT_EQ(chosen, (std::set<uint32_t>{1, 3}));
}

TEST_F(CacheAwareTest, TheMatchRateOfTheChosenWorkerIsReported) {
  fleet({0, 1});
  EXPECT_DOUBLE_EQ(choose(defaults_, matched(9, 10, {1})).match_rate, 0.9);
  EXPECT_DOUBLE_EQ(choose(defaults_, matched(1, 10, {1})).match_rate, 0.0)
      << "the miss went to a worker that holds nothing";
}

TEST_F(CacheAwareTest, ReportedPoolsMakeAnImbalanceWhereTheThresholdsAreBelowOne) {
  fleet({0, 0});
  fleet_.load(0).polled_tokens = 1;
  fleet_.load(1).polled_tokens = 1;
  fleet_.load(1).polled_kv_usage = 0.95;
  EXPECT_EQ(choose(defaults_, matched(10, 10, {1})).reason, Reason::kPrefixHeld);

  CacheAware::Rules rules{.cache_threshold = 0.3, .balance_abs_threshold = 64, .balance_rel_threshold = 1.5};
  rules.overload_token_usage_threshold = 0.9;
  EXPECT_EQ(choose(CacheAware(rules), matched(10, 10, {1})).reason, Reason::kImbalanced);
  rules.overload_token_usage_threshold = 0.95;
  EXPECT_EQ(choose(CacheAware(rules), matched(10, 10, {1})).reason, Reason::kPrefixHeld) << "strictly greater";
  rules.balance_token_usage_threshold = 0.5;
  EXPECT_EQ(choose(CacheAware(rules), matched(10, 10, {1})).reason, Reason::kImbalanced);
  fleet_.load(1).polled_tokens = -1;
  EXPECT_EQ(choose(CacheAware(rules), matched(10, 10, {1})).reason, Reason::kPrefixHeld) << "its report is gone";
}

}  // namespace
}  // namespace sluice::gateway
