#include "gateway/live_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <thread>

namespace sluice::gateway {
namespace {

using ::testing::UnorderedElementsAre;

std::vector<int64_t> begun_in(const LiveRequests& live) {
  std::vector<int64_t> all;
  live.each_begun([&](TimePoint begun) { all.push_back(begun.time_since_epoch().count()); });
  return all;
}

TimePoint at(int64_t nanos) { return TimePoint(Duration(nanos)); }

TEST(LiveRequestsTest, ShowsThoseThatHaveAPlace) {
  LiveRequests live;
  EXPECT_THAT(begun_in(live), UnorderedElementsAre());
  auto one = live.enter(at(1));
  {
    auto two = live.enter(at(2));
    EXPECT_THAT(begun_in(live), UnorderedElementsAre(1, 2));
  }
  auto three = live.enter(at(3));
  EXPECT_THAT(begun_in(live), UnorderedElementsAre(1, 3));
}

TEST(LiveRequestsTest, GrowsWithThoseThatAreServedAtOnce) {
  LiveRequests live;
  for (int round = 0; round < 2; ++round) {
    std::deque<LiveRequests::Place> places;
    for (int i = 0; i < 1000; ++i) places.emplace_back(live.enter(at(i)));
    EXPECT_EQ(begun_in(live).size(), 1000u);
    while (!places.empty()) places.pop_front();
    EXPECT_TRUE(begun_in(live).empty());
  }
}

TEST(LiveRequestsTest, AnotherThreadReadsWhileRequestsComeAndGo) {
  LiveRequests live;
  const auto stays = live.enter(at(7));
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) {
      const auto all = begun_in(live);
      EXPECT_EQ(std::ranges::count(all, 7), 1);
      EXPECT_LE(all.size(), 601u);
    }
  });
  for (int round = 0; round < 200; ++round) {
    std::deque<LiveRequests::Place> places;
    for (int i = 0; i < 600; ++i) places.emplace_back(live.enter(at(100 + i)));
  }
  done = true;
  reader.join();
}

}  // namespace
}  // namespace sluice::gateway
