#include "base/clock.h"

#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice {
namespace {

using namespace std::chrono_literals;

TEST(ClockTest, TheRealClockNeverGoesBack) {
  TimePoint last = real_clock().now();
  for (int i = 0; i < 10'000; ++i) {
    const TimePoint now = real_clock().now();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(ClockTest, UnixTimeIsInNanoseconds) {
  // Between 2020 and 2100: a factor of a thousand off would be far outside.
  EXPECT_GT(real_clock().unix_nanos(), 1'577'836'800'000'000'000);
  EXPECT_LT(real_clock().unix_nanos(), 4'102'444'800'000'000'000);
}

TEST(ClockTest, SecondsGoBothWays) {
  EXPECT_EQ(seconds(1500ms), 1.5);
  EXPECT_EQ(from_seconds(0.25), Duration(250ms));
  EXPECT_EQ(from_seconds(seconds(12'345ns)), Duration(12'345ns));
}

TEST(FakeClockTest, MovesOnlyWhenItIsTold) {
  testing::FakeClock clock;
  const TimePoint before = clock.now();
  const int64_t unix_before = clock.unix_nanos();
  EXPECT_EQ(clock.now(), before);
  clock.advance(2h);
  EXPECT_EQ(clock.now() - before, Duration(2h));
  EXPECT_EQ(clock.unix_nanos() - unix_before, Duration(2h).count());
}

}  // namespace
}  // namespace sluice
