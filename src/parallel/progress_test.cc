#include "parallel/progress.h"

#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice::parallel {
namespace {

using namespace std::chrono_literals;

TEST(SignOfLifeTest, WhatAnotherRankNoticedNeverSetsItBackAndIsNoJoining) {
  SignOfLife sign;
  sign.noticed(TimePoint(5s));
  EXPECT_FALSE(sign.joined());
  sign.seen(TimePoint(10s));
  sign.noticed(TimePoint(9s));
  EXPECT_EQ(sign.when(), TimePoint(10s));
  sign.noticed(TimePoint(11s));
  EXPECT_EQ(sign.when(), TimePoint(11s));
}

TEST(LostTimeTest, IsWhatPassesBeyondTheSleepThatWasAskedFor) {
  testing::FakeClock clock;
  LostTime lost(clock);
  clock.advance(2s);
  EXPECT_EQ(lost.look(0s), 2s) << "it did not get to sleep";
  clock.advance(100ms);
  EXPECT_EQ(lost.look(500ms), 0s) << "it was woken early";
  clock.advance(599ms);
  EXPECT_EQ(lost.look(500ms), 0s) << "it was a little late";
  clock.advance(7s);
  EXPECT_EQ(lost.look(500ms), 6500ms);
  clock.advance(1h);
  lost.begin_anew();
  EXPECT_EQ(lost.look(0s), 0s);
}

class TimeLeftTest : public ::testing::Test {
 protected:
  // Rank 2 waits for rank 0, of which nothing was seen for 5 s.
  std::string message(Duration lost = 0s) const {
    const std::vector<int> missing{0};
    const auto left = time_left(
        {.group = "a", .call = "barrier #1", .waiting = 2, .missing = missing, .since = TimePoint(10s), .lost = lost},
        signs_, TimePoint(15s), 5s, 60s);
    return left.ok() ? "(time is left)" : left.error().message;
  }

  std::vector<SignOfLife> signs_ = std::vector<SignOfLife>(4);
};

TEST_F(TimeLeftTest, ARankThatWaitsItselfIsNamedWithTheOneThatKeepsIt) {
  for (SignOfLife& sign : signs_) sign.seen(TimePoint(10s));
  EXPECT_EQ(message(), "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s");
  signs_[1].seen(TimePoint(10s), {.step = 4, .phase = Phase::kExperts, .layer = 2});
  SignOfLife::Waiting waiting(signs_[0]);
  waiting.is_for(1);
  EXPECT_EQ(message(),
            "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s, which waits for "
            "rank 1 (step 4, layer 2, experts)");
}

TEST_F(TimeLeftTest, TimeInWhichTheWaitingRankCouldNotLookIsNoSilence) {
  for (SignOfLife& sign : signs_) sign.seen(TimePoint(10s));
  EXPECT_EQ(message(1s), "(time is left)");
  EXPECT_EQ(message(0s), "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s");
}

TEST_F(TimeLeftTest, RanksThatWaitForEachOtherAreNamedOnce) {
  for (SignOfLife& sign : signs_) sign.seen(TimePoint(10s));
  SignOfLife::Waiting first(signs_[0]), second(signs_[1]);
  first.is_for(1);
  second.is_for(0);
  EXPECT_EQ(message(),
            "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s, which waits for rank 1");
}

// Rank 0 waits in one thread for rank 3, which hangs, and in the other for rank 1, which waits for rank 3 too.
TEST_F(TimeLeftTest, OfTwoThatARankWaitsForTheOneThatWaitsForNobodyIsNamed) {
  for (SignOfLife& sign : signs_) sign.seen(TimePoint(10s));
  SignOfLife::Waiting of_one(signs_[1]);
  of_one.is_for(3);
  SignOfLife::Waiting to_one(signs_[0]);
  to_one.is_for(1);
  const std::string named =
      "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s, which waits for rank ";
  EXPECT_EQ(message(), named + "1, which waits for rank 3");
  {
    SignOfLife::Waiting to_three(signs_[0]);
    to_three.is_for(3);
    EXPECT_EQ(message(), named + "3");
    SignOfLife::Waiting beyond(signs_[0]);  // more than a rank has threads
    beyond.is_for(2);
    EXPECT_EQ(message(), named + "3");
  }
  EXPECT_EQ(message(), named + "1, which waits for rank 3") << "one thread has come back, the other has not";
}

}  // namespace
}  // namespace sluice::parallel
