#include "parallel/latency.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/group_fixture.h"
#include "parallel/inproc.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;

TEST(LatencyTest, DelaysWhatCrossesHostsByLatencyAndBytes) {
  std::vector<std::vector<Duration>> slept(3);
  Ranks ranks;
  for (auto& inner : make_inproc_group(3)) {
    auto& mine = slept[static_cast<size_t>(inner->rank())];
    ranks.push_back(add_latency(std::move(inner), {.latency = milliseconds(2),
                                                   .bytes_per_second = 1000,
                                                   .hosts = {0, 0, 1},
                                                   .sleep = [&mine](Duration time) { mine.push_back(time); }}));
  }
  on_each(ranks, [](Communicator& comm) {
    std::vector<uint8_t> in(10), out(30);
    ASSERT_OK(comm.all_gather({}, Element::kU8, in.data(), out.data(), 10));
    EXPECT_EQ(comm.received_bytes(), 20u);
  });
  EXPECT_THAT(slept[0], ElementsAre(milliseconds(12)));
  EXPECT_THAT(slept[2], ElementsAre(milliseconds(22)));
}

TEST(LatencyTest, LeavesAGroupWithinOneHostAlone) {
  std::vector<int> sleeps(3);
  Ranks ranks;
  for (auto& inner : make_inproc_group(3)) {
    auto& mine = sleeps[static_cast<size_t>(inner->rank())];
    ranks.push_back(add_latency(
        std::move(inner), {.latency = milliseconds(2), .hosts = {0, 0, 1}, .sleep = [&mine](Duration) { ++mine; }}));
  }
  on_each(ranks, [&](Communicator& comm) {
    auto host = comm.split(comm.rank() / 2, 0, "host");
    ASSERT_OK(host);
    const int before = sleeps[static_cast<size_t>(comm.rank())];
    EXPECT_GT(before, 0);
    ASSERT_OK((*host)->barrier());
    EXPECT_EQ(sleeps[static_cast<size_t>(comm.rank())], before);
  });
}

}  // namespace
}  // namespace sluice::parallel
