#include "gateway/request_limit.h"

#include <gtest/gtest.h>

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

class RequestLimitTest : public ::testing::Test {
 protected:
  void SetUp() override { limit_.allow(RequestLimit::kNone); }
  // An answer to a request that was sent just now.
  void busy(int64_t others) { limit_.busy(now_, now_, others); }

  TimePoint now_{100s};
  std::atomic<int64_t> seat_{RequestLimit::kNone};
  RequestLimit limit_{seat_};
};

TEST_F(RequestLimitTest, BusyHalvesWhatTheWorkerHas) {
  busy(20);
  EXPECT_EQ(seat_, 10);
  now_ += 1ms;
  busy(10);
  EXPECT_EQ(seat_, 5);
  for (const int64_t others : {3, 1, 0, 0}) {
    now_ += 1ms;
    busy(others);
  }
  EXPECT_EQ(seat_, 1) << "one may always ask";
}

TEST_F(RequestLimitTest, ABurstThatIsRefusedHalvesOnce) {
  const TimePoint sent = now_;
  now_ += 30ms;
  for (int64_t others = 19; others > 8; --others) {
    limit_.busy(sent, now_, others);
    now_ += 1ms;
  }
  EXPECT_EQ(seat_, 9);
  limit_.busy(now_, now_, 8);
  EXPECT_EQ(seat_, 4) << "this one was sent with the window as it was";
}

TEST_F(RequestLimitTest, EachAnswerMakesItOneWider) {
  busy(20);
  for (int i = 0; i < 3; ++i) limit_.served(now_);
  EXPECT_EQ(seat_, 13);
}

TEST_F(RequestLimitTest, ItGrowsWithTimeAndIsGoneWithinASecondOfTheLastBusy) {
  busy(20);
  EXPECT_TRUE(limit_.pass(now_ + 100ms));
  EXPECT_EQ(seat_, 12);
  EXPECT_TRUE(limit_.pass(now_ + 499ms));
  EXPECT_EQ(seat_, 19);
  EXPECT_FALSE(limit_.pass(now_ + 500ms));
  EXPECT_EQ(seat_, RequestLimit::kNone);
  EXPECT_LT(RequestLimit::kRegrowth, 1s);
  now_ += 600ms;
  busy(20);
  limit_.pass(now_ + 400ms);
  now_ += 400ms;
  limit_.busy(now_ - 500ms, now_, 30);  // sent before it was halved
  EXPECT_EQ(seat_, 18) << "it stays what it was";
  EXPECT_TRUE(limit_.pass(now_ + 499ms)) << "and its time begins anew";
  EXPECT_FALSE(limit_.pass(now_ + 500ms));
}

TEST_F(RequestLimitTest, AnAnswerThatIsLateForItsWindowBringsNoneBack) {
  const TimePoint sent = now_;
  now_ += 30ms;
  limit_.busy(sent, now_, 20);
  now_ += 600ms;
  ASSERT_FALSE(limit_.pass(now_));
  limit_.busy(sent, now_, 20);
  EXPECT_EQ(seat_, RequestLimit::kNone);
  EXPECT_FALSE(limit_.is_narrowed());
  limit_.busy(now_ - 1ms, now_, 20);
  EXPECT_EQ(seat_, 10) << "sent after it was halved";
}

TEST_F(RequestLimitTest, AWorkerThatIsBusyFromTheFirstMomentIsHeard) {
  limit_.busy(TimePoint{}, TimePoint{}, 20);
  EXPECT_EQ(seat_, 10);
}

TEST_F(RequestLimitTest, TheLessOfBothCounts) {
  busy(20);
  limit_.allow(4);
  EXPECT_EQ(seat_, 4);
  EXPECT_EQ(limit_.allowed(), 4);
  limit_.allow(0);
  limit_.served(now_);
  EXPECT_EQ(seat_, 0) << "a suspect has none, busy or not";
  limit_.allow(RequestLimit::kNone);
  EXPECT_EQ(seat_, 11) << "trusted again, it is as busy as it was";
  limit_.allow(4);
  limit_.pass(now_ + 500ms);
  EXPECT_EQ(seat_, 4) << "it begins slowly as long as that takes";
}

TEST_F(RequestLimitTest, ANewProcessIsNotBusy) {
  busy(20);
  limit_.allow(30);
  limit_.forget_busy();
  EXPECT_EQ(seat_, 30);
  limit_.served(now_);
  EXPECT_FALSE(limit_.pass(now_));
  EXPECT_EQ(seat_, 30);
}

}  // namespace
}  // namespace sluice::gateway
