#include "parallel/stay_alive.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "parallel/group_fixture.h"
#include "parallel/shm.h"
#include "testing/fake_clock.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class StayAliveTest : public ::testing::TestWithParam<CommunicatorRow> {};

TEST_P(StayAliveTest, AfterItsEndSilenceIsSilence) {
  testing::FakeClock clock;
  auto ranks = make_ranks(GetParam(), 2, {.longest_sleep = milliseconds(1), .clock = &clock});
  on_each(ranks, [](Communicator& comm) { ASSERT_OK(comm.barrier()); });
  { const StayAlive alive(*ranks[1], {.step = 7, .phase = Phase::kControl}, milliseconds(1)); }
  EXPECT_EQ(ranks[0]->last_progress(1).step, 7u);
  std::jthread time([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      clock.advance(milliseconds(10));
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  const auto result = ranks[0]->barrier();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(result.error().message, ::testing::HasSubstr("no sign of rank 1 for "));
}

// Those whose signs are seen as they are given. Of others a test cannot tell when they have arrived.
std::vector<CommunicatorRow> in_memory() {
  const auto all = communicators();
  std::vector<CommunicatorRow> rows(all.begin(), all.end());
  std::erase_if(rows, [](const CommunicatorRow& row) { return row.name == "gloo"; });
  return rows;
}

// Two ranks over memory whose signs a test can look at: each second is to be heard of before the next.
class StayAliveShmTest : public ::testing::Test {
 protected:
  StayAliveShmTest() {
    const GroupOptions options{.silence_limit = seconds(5), .longest_sleep = milliseconds(1), .clock = &clock};
    for (const int rank : {0, 1}) ranks.push_back(join_shm(segment, rank, 2, options).value());
  }
  // False if it does not within a minute.
  template <class Condition>
  bool comes(const Condition& condition) const {
    while (!condition()) {
      if (real_clock().now() > give_up_) return false;
      std::this_thread::yield();
    }
    return true;
  }
  bool rank_0_waits() {
    const bool waits = comes([&] { return segment->signs()[0].waits_for()[0] == 1; });
    EXPECT_TRUE(waits) << "rank 0 does not wait";
    return waits;
  }
  // A second passes, of which rank 1 gives a sign.
  bool heard_after_a_second() {
    clock.advance(seconds(1));
    const bool heard = comes([&] { return segment->signs()[1].when() == clock.now(); });
    EXPECT_TRUE(heard) << "no sign";
    return heard;
  }

  testing::FakeClock clock;
  const std::shared_ptr<ShmSegment> segment = ShmSegment::create(2).value();
  Ranks ranks;

 private:
  const TimePoint give_up_ = real_clock().now() + seconds(60);
};

// Rank 1 reads for 40 s, during which rank 0 waits for it and allows 5 s of silence.
TEST_F(StayAliveShmTest, ARankThatReadsForLongIsWaitedFor) {
  on_each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      bool heard = rank_0_waits();
      const StayAlive alive(comm, {.step = 7, .phase = Phase::kControl}, milliseconds(1));
      for (int second = 0; heard && second < 40; ++second) heard = heard_after_a_second();
      if (!heard) segment->abort("the test has failed");
    }
    EXPECT_OK(comm.barrier());
  });
}

// Rank 1 hangs where it stays alive for 20 s at most: as long it is waited for, and from then on its silence counts.
TEST_F(StayAliveShmTest, WhatTakesForEverIsSilenceInTheEnd) {
  std::atomic<bool> failed = false;
  std::jthread waits([&] {
    const auto result = ranks[0]->barrier();
    failed = true;
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kTimeout);
    EXPECT_THAT(result.error().message, ::testing::HasSubstr("no sign of rank 1 for "));
  });
  bool heard = rank_0_waits();
  const StayAlive alive(*ranks[1], {.step = 7, .phase = Phase::kControl}, milliseconds(1), seconds(20), clock);
  for (int second = 0; heard && second < 20; ++second) {
    heard = heard_after_a_second();
    EXPECT_FALSE(failed);
  }
  // The thread that gives signs would give one within a millisecond each time.
  for (int half = 0; heard && half < 100 && !failed; ++half) {
    clock.advance(milliseconds(500));
    std::this_thread::sleep_for(milliseconds(5));
  }
  EXPECT_TRUE(comes([&] { return failed.load(); })) << "a rank that hangs is waited for";
  if (!failed) segment->abort("the test has failed");
}

INSTANTIATE_TEST_SUITE_P(Members, StayAliveTest, ::testing::ValuesIn(in_memory()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sluice::parallel
