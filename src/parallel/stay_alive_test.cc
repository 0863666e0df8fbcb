#include "parallel/stay_alive.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/group_fixture.h"
#include "testing/fake_clock.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class StayAliveTest : public ::testing::TestWithParam<CommunicatorRow> {};

// Rank 1 reads for 40 s, during which rank 0 waits for it and allows 5 s of silence.
TEST_P(StayAliveTest, ARankThatReadsForLongIsWaitedFor) {
  testing::FakeClock clock;
  auto ranks = make_ranks(GetParam(), 2, {.longest_sleep = milliseconds(1), .clock = &clock});
  on_each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      const StayAlive alive(comm, {.step = 7, .phase = Phase::kControl}, milliseconds(1));
      // A second passes whenever the one before it was heard of: where that is rank 0 says by where rank 1 is.
      for (uint32_t second = 0; second < 40; ++second) {
        comm.progress({.step = 100 + second, .phase = Phase::kControl});
        while (ranks[0]->last_progress(1).step != 7) std::this_thread::yield();
        clock.advance(seconds(1));
      }
    }
    EXPECT_OK(comm.barrier());
  });
}

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

INSTANTIATE_TEST_SUITE_P(Members, StayAliveTest, ::testing::ValuesIn(in_memory()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace sluice::parallel
