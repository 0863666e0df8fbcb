#include "gateway/health.h"

#include <gtest/gtest.h>

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

class HealthTest : public ::testing::Test {
 protected:
  void passed(int times) {
    for (int i = 0; i < times; ++i) health_.passed();
  }
  void failed(int times) {
    for (int i = 0; i < times; ++i) health_.failed();
  }
  HealthState health_{{.failures = 3, .successes = 2, .interval = 60s, .undecided = 1s}};
};

TEST_F(HealthTest, ANewWorkerIsUsedAfterOneSuccess) {
  EXPECT_FALSE(health_.healthy());
  passed(1);
  EXPECT_TRUE(health_.healthy());
}

TEST_F(HealthTest, ChangesAfterConsecutiveResultsOnly) {
  passed(1);
  failed(2);
  passed(1);
  failed(2);
  EXPECT_TRUE(health_.healthy());
  failed(1);
  EXPECT_FALSE(health_.healthy());
  passed(1);
  failed(1);
  passed(1);
  EXPECT_FALSE(health_.healthy());
  passed(1);
  EXPECT_TRUE(health_.healthy());
}

TEST_F(HealthTest, AsksOftenUntilItIsDecided) {
  passed(1);
  EXPECT_EQ(health_.next_probe(), 60s);
  failed(1);
  EXPECT_EQ(health_.next_probe(), 1s);
  passed(1);
  EXPECT_EQ(health_.next_probe(), 60s);
  failed(3);
  EXPECT_EQ(health_.next_probe(), 1s) << "it is to come back soon";
}

TEST_F(HealthTest, SaysWhenItIsUsedIfAllGoesWell) {
  EXPECT_EQ(health_.after_probe(), 0s) << "a new worker needs one success";
  passed(1);
  EXPECT_EQ(health_.after_probe(), 0s);
  failed(3);
  EXPECT_EQ(health_.after_probe(), 1s) << "and one that was lost two";
  passed(1);
  EXPECT_EQ(health_.after_probe(), 0s);
}

TEST_F(HealthTest, AFaultOfARequestBringsTheNextProbeForward) {
  passed(1);
  health_.suspect();
  EXPECT_EQ(health_.next_probe(), 1s);
  EXPECT_TRUE(health_.healthy()) << "it is a reason to ask and no verdict";
  passed(1);
  EXPECT_EQ(health_.next_probe(), 60s);
}

TEST_F(HealthTest, AsksWhenTheBreakerHalfOpensAndOftenFromThenOn) {
  passed(1);
  EXPECT_EQ(health_.next_probe(50s), 50s);
  EXPECT_EQ(health_.next_probe(0s), 1s);
  EXPECT_EQ(health_.next_probe(90s), 60s);
  EXPECT_EQ(health_.next_probe(), 60s) << "of a closed one";
  failed(1);
  EXPECT_EQ(health_.next_probe(50s), 1s);
}

TEST_F(HealthTest, AShortIntervalIsNeverLengthened) {
  HealthState quick({.interval = 100ms, .undecided = 1s}, true);
  quick.suspect();
  EXPECT_EQ(quick.next_probe(), 100ms);
}

TEST_F(HealthTest, SomebodyWhoKnowsBetterIsBelieved) {
  health_.force(true);
  EXPECT_TRUE(health_.healthy());
  failed(2);
  health_.force(true);
  failed(2);
  EXPECT_TRUE(health_.healthy()) << "the count began again";
  health_.force(false);
  EXPECT_FALSE(health_.healthy());
  EXPECT_EQ(health_.next_probe(), 1s);
}

}  // namespace
}  // namespace sluice::gateway
