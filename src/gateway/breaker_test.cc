#include "gateway/breaker.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>
#include <vector>

#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using State = BreakerState;

class BreakerTest : public ::testing::Test {
 protected:
  // A permit, or none.
  std::optional<Breaker::Permit> begin() {
    Breaker::Permit permit;
    if (!breaker_.begin(permit)) return std::nullopt;
    return permit;
  }
  void fault() { breaker_.fault(begin().value()); }
  void success() { breaker_.success(begin().value()); }
  void open() {
    while (breaker_.state() != State::kOpen) fault();
  }

  sluice::testing::FakeClock clock_;
  Breaker breaker_{{.failure_threshold = 3, .success_threshold = 2, .open_time = 10s, .window = 60s}, clock_};
};

TEST_F(BreakerTest, OpensAfterConsecutiveFaults) {
  fault();
  fault();
  success();
  fault();
  fault();
  EXPECT_EQ(breaker_.state(), State::kClosed) << "a success between them starts the count again";
  fault();
  EXPECT_EQ(breaker_.state(), State::kOpen);
  EXPECT_FALSE(breaker_.admits());
  EXPECT_FALSE(begin());
}

TEST_F(BreakerTest, StaysClosedWhenTheWorkerIsOnlyBusy) {
  for (int i = 0; i < 1000; ++i) breaker_.neutral(begin().value());
  EXPECT_EQ(breaker_.state(), State::kClosed);
}

TEST_F(BreakerTest, BusyDoesNotEndARowOfFaults) {
  fault();
  fault();
  breaker_.neutral(begin().value());
  fault();
  EXPECT_EQ(breaker_.state(), State::kOpen);
}

TEST_F(BreakerTest, CountsOnlyFaultsWithinItsWindow) {
  fault();
  clock_.advance(50s);
  fault();
  clock_.advance(11s);  // the window has left the first one
  fault();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  fault();
  EXPECT_EQ(breaker_.state(), State::kOpen) << "three within the last 60 s";
}

TEST_F(BreakerTest, AdmitsOneTrialAtATimeWhenHalfOpen) {
  open();
  clock_.advance(10s - 1ns);
  EXPECT_FALSE(breaker_.admits());
  clock_.advance(1ns);
  EXPECT_TRUE(breaker_.admits());
  const auto trial = begin();
  ASSERT_TRUE(trial);
  EXPECT_TRUE(trial->trial);
  EXPECT_FALSE(breaker_.admits());
  EXPECT_FALSE(begin()) << "a second request slipped in beside the trial";
  breaker_.success(*trial);
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  success();
  EXPECT_EQ(breaker_.state(), State::kClosed);
}

TEST_F(BreakerTest, AFailedTrialOpensItForTheWholeTimeAgain) {
  open();
  clock_.advance(10s);
  fault();
  EXPECT_EQ(breaker_.state(), State::kOpen);
  clock_.advance(9s);
  EXPECT_FALSE(begin());
  clock_.advance(1s);
  EXPECT_TRUE(begin());
}

TEST_F(BreakerTest, ATrialWithoutAVerdictMakesRoomForTheNext) {
  open();
  clock_.advance(10s);
  breaker_.neutral(begin().value());
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  EXPECT_TRUE(begin());
}

TEST_F(BreakerTest, WhatBeganBeforeAChangeCountsForNothing) {
  const auto old = begin().value();
  open();
  clock_.advance(10s);
  const auto trial = begin().value();
  breaker_.fault(old);
  breaker_.success(old);
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  breaker_.success(trial);
  success();
  ASSERT_EQ(breaker_.state(), State::kClosed);
  for (int i = 0; i < 3; ++i) breaker_.fault(old);
  EXPECT_EQ(breaker_.state(), State::kClosed) << "faults of the time before it opened";
  breaker_.success(trial);
}

TEST_F(BreakerTest, AWorkerThatCameBackIsTriedEarly) {
  breaker_.recovered();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  open();
  breaker_.recovered();
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  EXPECT_TRUE(begin());
}

TEST_F(BreakerTest, APassedProbeIsAGoodTrialOnceTheOpenTimeIsOver) {
  open();
  for (int i = 0; i < 10; ++i) breaker_.probe_passed();
  EXPECT_EQ(breaker_.state(), State::kOpen) << "it may pass its probes and fail its requests";
  clock_.advance(10s);
  breaker_.probe_passed();
  EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  EXPECT_EQ(breaker_.streak().successes, 1);
  const auto trial = begin().value();  // one is let in beside the probes, and still one at a time
  EXPECT_FALSE(begin());
  breaker_.probe_passed();
  EXPECT_EQ(breaker_.state(), State::kClosed) << "a long trial is not waited for";
  breaker_.probe_passed();
  EXPECT_EQ(breaker_.streak().successes, 0);
  breaker_.fault(trial);
  EXPECT_EQ(breaker_.state(), State::kOpen) << "it passes its probes and fails its requests";
  EXPECT_EQ(breaker_.open_for(), 10s);
}

TEST_F(BreakerTest, OfATrialThatProbesHaveOvertakenOnlyAFaultInTheNextStateCounts) {
  const auto overtake = [&] {
    open();
    clock_.advance(10s);
    const auto trial = begin().value();
    for (int i = 0; i < 2; ++i) breaker_.probe_passed();
    EXPECT_EQ(breaker_.state(), State::kClosed);
    return trial;
  };
  breaker_.success(overtake());
  EXPECT_EQ(breaker_.state(), State::kClosed);
  const auto late = overtake();
  breaker_.reset();
  breaker_.fault(late);
  EXPECT_EQ(breaker_.state(), State::kClosed) << "of the process before";
  const auto older = overtake();
  const auto newer = overtake();
  breaker_.fault(older);
  EXPECT_EQ(breaker_.state(), State::kClosed) << "of the time before it opened again";
  breaker_.fault(newer);
  EXPECT_EQ(breaker_.state(), State::kOpen);
}

TEST_F(BreakerTest, ABadTrialUndoesWhatProbesHaveSaid) {
  open();
  clock_.advance(10s);
  breaker_.probe_passed();
  fault();
  EXPECT_EQ(breaker_.state(), State::kOpen);
  breaker_.probe_passed();
  EXPECT_EQ(breaker_.state(), State::kOpen);
}

TEST_F(BreakerTest, SaysForHowLongItIsOpen) {
  EXPECT_EQ(breaker_.open_for(), std::nullopt);
  open();
  clock_.advance(4s);
  EXPECT_EQ(breaker_.open_for(), 6s);
  clock_.advance(60s);
  EXPECT_EQ(breaker_.open_for(), 0s);
  (void)begin();
  EXPECT_EQ(breaker_.open_for(), 0s);
}

TEST_F(BreakerTest, ANewProcessStartsWithAClosedOne) {
  const auto old = begin().value();
  open();
  breaker_.reset();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  for (int i = 0; i < 3; ++i) breaker_.fault(old);
  EXPECT_EQ(breaker_.state(), State::kClosed);
}

TEST_F(BreakerTest, ReportsEachChangeOnce) {
  std::vector<std::pair<State, State>> changes;
  breaker_.on_change([&](State from, State to) { changes.emplace_back(from, to); });
  open();
  clock_.advance(10s);
  success();
  success();
  breaker_.reset();
  EXPECT_EQ(changes,
            (std::vector<std::pair<State, State>>{
                {State::kClosed, State::kOpen}, {State::kOpen, State::kHalfOpen}, {State::kHalfOpen, State::kClosed}}));
}

TEST_F(BreakerTest, CanBeTurnedOff) {
  Breaker off({.failure_threshold = 1, .enabled = false}, clock_);
  Breaker::Permit permit;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(off.begin(permit));
    off.fault(permit);
  }
  EXPECT_EQ(off.state(), State::kClosed);
}

TEST_F(BreakerTest, TakesItsRulesFromTheOptions) {
  const auto options = gateway_option_table().parse({"--cb-failure-threshold", "4", "--cb-success-threshold", "5",
                                                     "--cb-timeout-duration-secs", "6", "--cb-window-duration-secs",
                                                     "7", "--disable-circuit-breaker"});
  const auto rules = BreakerRules::from(options.value());
  EXPECT_EQ(rules.failure_threshold, 4);
  EXPECT_EQ(rules.success_threshold, 5);
  EXPECT_EQ(rules.open_time, 6s);
  EXPECT_EQ(rules.window, 7s);
  EXPECT_FALSE(rules.enabled);
}

TEST_F(BreakerTest, NeverLetsTwoTrialsInFromManyThreads) {
  open();
  clock_.advance(10s);
  std::atomic<int> trials{0}, most{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        Breaker::Permit permit;
        if (!breaker_.begin(permit)) continue;
        const int now = trials.fetch_add(1) + 1;
        if (now > most) most = now;
        trials.fetch_sub(1);
        breaker_.neutral(permit);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
}

TEST_F(BreakerTest, OneThatIsSwitchedOffCloses) {
  open();
  breaker_.set_rules({.enabled = false});
  EXPECT_EQ(breaker_.state(), State::kClosed);
  for (int i = 0; i < 100; ++i) fault();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  breaker_.set_rules({.failure_threshold = 2});
  fault();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  fault();
  EXPECT_EQ(breaker_.state(), State::kOpen);
}

}  // namespace
}  // namespace sluice::gateway
