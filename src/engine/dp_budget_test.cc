#include "engine/dp_budget.h"

#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice::engine {
namespace {

using namespace std::chrono_literals;

class DpBudgetTest : public ::testing::Test {
 protected:
  DpBudgetTest() {
    for (const int64_t rank : {0, 1}) budget_.set_active(rank, true);
  }
  void publish(int64_t rank, uint64_t last_seq, int64_t requests, int64_t tokens) {
    clock_.advance(1ms);
    board_.publish(rank, {.unix_nanos = clock_.unix_nanos(),
                          .last_dispatch_seq = last_seq,
                          .num_running_reqs = requests,
                          .num_used_tokens = tokens});
  }

  sluice::testing::FakeClock clock_;
  LoadBoard board_ = *LoadBoard::create(2);
  DpBudget budget_{board_, clock_};
};

TEST_F(DpBudgetTest, CountsRequestsAndTokensAsTheyAreSent) {
  budget_.dispatched(1, 1, 10, 10);
  budget_.dispatched(1, 2, 30, 20);
  EXPECT_EQ(budget_.loads()[1].waiting, 30);
  budget_.computed(1, 2);
  budget_.computed(1, 2);
  EXPECT_EQ(budget_.loads()[1].waiting, 10);
  EXPECT_EQ(budget_.loads()[1].requests, 2);
  EXPECT_EQ(budget_.loads()[1].tokens, 40);
  EXPECT_EQ(budget_.loads()[0].requests, 0);
  budget_.ended(1, 1);
  budget_.ended(1, 1);
  EXPECT_EQ(budget_.loads()[1].requests, 1);
  EXPECT_EQ(budget_.loads()[1].tokens, 30);
  EXPECT_EQ(budget_.loads()[1].waiting, 0);
}

TEST_F(DpBudgetTest, AWordReplacesWhatItContainsAndNothingElse) {
  budget_.dispatched(0, 1, 10, 10);
  budget_.dispatched(0, 2, 30, 30);
  publish(0, /*last_seq=*/1, /*requests=*/5, /*tokens=*/500);
  EXPECT_EQ(budget_.loads()[0].requests, 5 + 1);
  EXPECT_EQ(budget_.loads()[0].tokens, 500 + 30);
  publish(0, 2, 6, 530);
  clock_.advance(20ms);
  EXPECT_EQ(budget_.loads()[0].requests, 6);
  EXPECT_EQ(budget_.loads()[0].tokens, 530);
}

TEST_F(DpBudgetTest, ReadsTheBoardAtMostEvery20Milliseconds) {
  publish(0, 0, 1, 1);
  EXPECT_EQ(budget_.loads()[0].requests, 1);
  publish(0, 0, 7, 7);
  clock_.advance(18ms);
  EXPECT_EQ(budget_.loads()[0].requests, 1);
  clock_.advance(1ms);
  EXPECT_EQ(budget_.loads()[0].requests, 7);
}

TEST_F(DpBudgetTest, AnOldWordKeepsTheIncrements) {
  publish(0, 0, 3, 3);
  EXPECT_EQ(budget_.loads()[0].requests, 3);
  budget_.dispatched(0, 1, 10, 10);
  clock_.advance(1h);
  EXPECT_EQ(budget_.loads()[0].requests, 4) << "the rank has been in one step for an hour";
}

TEST_F(DpBudgetTest, ARestartedRankBeginsAtZeroUntilItsOwnFirstWord) {
  publish(0, 9, 50, 5000);
  EXPECT_EQ(budget_.loads()[0].requests, 50);
  budget_.set_active(0, false);
  EXPECT_FALSE(budget_.loads()[0].active);
  budget_.set_active(0, true);
  clock_.advance(20ms);
  EXPECT_EQ(budget_.loads()[0].requests, 0) << "the word of the process that has ended";
  EXPECT_EQ(budget_.word(0).num_running_reqs, 0);
  publish(0, 0, 2, 20);
  clock_.advance(20ms);
  EXPECT_EQ(budget_.loads()[0].requests, 2);
  EXPECT_EQ(budget_.word(0).num_running_reqs, 2);
}

}  // namespace
}  // namespace sluice::engine
