#include "base/stop_signals.h"

#include <gtest/gtest.h>
#include <poll.h>

namespace sluice {
namespace {

TEST(StopSignalsTest, ASignalIsAnEvent) {
  StopSignals signals;
  EXPECT_EQ(signals.wait(Duration{0}), std::nullopt);
  raise(SIGINT);
  pollfd entry{signals.descriptor(), POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, 0), 1);
  EXPECT_EQ(signals.wait(Duration{0}), SIGINT);
  EXPECT_EQ(poll(&entry, 1, 0), 0);
}

TEST(StopSignalsTest, OneThatNobodyTookEndsNothingAfterwards) {
  {
    StopSignals signals;
    raise(SIGTERM);
  }
  SUCCEED() << "still here";
}

TEST(StopSignalsTest, AnInnerOneLeavesTheSignalToTheOuter) {
  StopSignals outer;
  {
    StopSignals inner;
    raise(SIGTERM);
  }
  EXPECT_EQ(outer.wait(Duration{0}), SIGTERM);
}

TEST(StopSignalsTest, OthersAreEventsWhereTheyAreAskedFor) {
  StopSignals signals({SIGUSR2});
  raise(SIGUSR2);
  EXPECT_EQ(signals.wait(Duration{0}), SIGUSR2);
}

}  // namespace
}  // namespace sluice
