// What only processes can show: the suite has ranks as threads.
#include "parallel/shm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <future>
#include <sstream>
#include <thread>

#include "base/process.h"
#include "parallel/group_fixture.h"
#include "testing/fake_clock.h"
#include "testing/seed.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr const char* kSegmentVariable = "SLUICE_TEST_SEGMENT_FD";
constexpr Duration kBound = seconds(60);

// The other half of these tests is this program again: DISABLED_Rank is one rank, with its part in the environment.
class ShmProcessTest : public ::testing::Test {
 protected:
  void start(int size, const std::string& part, const std::string& part_of_rank_1 = "") {
    segment_ = std::move(ShmSegment::create(size)).value();
    for (int rank = 0; rank < size; ++rank) {
      auto process = Process::start(
          {.program = own_executable(),
           .arguments = {"--gtest_filter=ShmProcessTest.DISABLED_Rank", "--gtest_also_run_disabled_tests",
                         "--gtest_brief=1"},
           .environment = {{"SLUICE_TEST_RANK", std::to_string(rank)},
                           {"SLUICE_TEST_SIZE", std::to_string(size)},
                           {"SLUICE_TEST_PART", rank == 1 && !part_of_rank_1.empty() ? part_of_rank_1 : part}},
           .descriptors = {{kSegmentVariable, segment_->fd()}},
           .stdout_to_stderr = true});
      ASSERT_TRUE(process.ok()) << process.error().message;
      ranks_.push_back(std::move(*process));
    }
  }
  void wait_until_all_are(Phase phase, int size) {
    for (int rank = 0; rank < size; ++rank) {
      const TimePoint until = real_clock().now() + kBound;
      while (segment_->signs()[static_cast<size_t>(rank)].where().phase != phase) {
        ASSERT_LT(real_clock().now(), until) << "rank " << rank;
        std::this_thread::sleep_for(milliseconds(1));
      }
    }
  }
  void expect_success(size_t rank) {
    const auto status = ranks_[rank].wait(kBound);
    ASSERT_TRUE(status) << "rank " << rank;
    EXPECT_TRUE(status->ok()) << "rank " << rank << ": " << status->to_string();
  }

  std::shared_ptr<ShmSegment> segment_;
  std::vector<Process> ranks_;
};

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

TEST_F(ShmProcessTest, DISABLED_Rank) {
  const auto fd = inherited_descriptor(kSegmentVariable);
  ASSERT_TRUE(fd) << "this is the other half of the tests beside it";
  const int rank = std::atoi(variable("SLUICE_TEST_RANK").c_str());
  const int size = std::atoi(variable("SLUICE_TEST_SIZE").c_str());
  const std::string part = variable("SLUICE_TEST_PART");
  const bool short_limit = part == "waits for the silent";
  auto segment = ShmSegment::open(*fd);
  ASSERT_OK(segment);
  auto joined = join_shm(std::move(*segment), rank, size,
                         {.silence_limit = short_limit ? Duration(milliseconds(200)) : Duration(kBound)});
  ASSERT_OK(joined);
  Communicator& comm = **joined;
  ASSERT_OK(comm.barrier());
  if (part == "random calls") {
    RandomCalls calls(testing::test_seed(), size, 1 << 20);
    for (int i = 0; i < 300; ++i) ASSERT_TRUE(calls.next(comm));
    return;
  }
  comm.progress({.step = 1, .phase = Phase::kExchange});
  if (part == "pauses") {
    while (true) ::pause();
  }
  const auto result = comm.barrier();
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message,
              HasSubstr(part == "waits for the silent" ? "no sign of rank 1 for 0.2 s (step 1, exchange)"
                                                       : "rank 1 was killed by SIGKILL"));
}

TEST_F(ShmProcessTest, RanksAreProcesses) {
  start(4, "random calls");
  for (size_t rank = 0; rank < 4; ++rank) expect_success(rank);
}

TEST_F(ShmProcessTest, TheFrontWakesAllWhenOneIsKilled) {
  start(3, "waits for the killed", "pauses");
  wait_until_all_are(Phase::kExchange, 3);
  ranks_[1].signal(SIGKILL);
  const auto status = ranks_[1].wait(kBound);
  ASSERT_TRUE(status);
  segment_->abort("rank 1 was " + status->to_string());
  expect_success(0);
  expect_success(2);
}

TEST_F(ShmProcessTest, ARankThatHangsIsNamed) {
  start(3, "waits for the silent", "pauses");
  expect_success(0);
  expect_success(2);
  ASSERT_TRUE(segment_->failure());
  EXPECT_THAT(segment_->failure()->message, HasSubstr("no sign of rank 1"));
}

// Of the process's only thread.
std::string switches(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  std::string line, found;
  while (std::getline(file, line)) {
    if (line.starts_with("Threads") || line.find("ctxt_switches") != std::string::npos) found += line + "\n";
  }
  return found;
}

TEST_F(ShmProcessTest, WaitingCostsNothing) {
  start(3, "waits for the killed", "pauses");
  wait_until_all_are(Phase::kExchange, 3);
  // Asleep once nothing changes any more; then for longer, which is what counts.
  const pid_t waiting = ranks_[0].pid();
  std::string before = switches(waiting);
  int same = 0;
  for (const TimePoint until = real_clock().now() + kBound; same < 30 && real_clock().now() < until;) {
    std::this_thread::sleep_for(milliseconds(10));
    std::string now = switches(waiting);
    same = now == before ? same + 1 : 0;
    before = std::move(now);
  }
  EXPECT_EQ(same, 30);
  EXPECT_THAT(before, HasSubstr("Threads:\t1\n"));
}

TEST(ShmTest, SaysWhoCannotJoin) {
  const auto segment = std::move(ShmSegment::create(2)).value();
  EXPECT_EQ(join_shm(segment, 0, 3).error().message, "rank 0 of 3 in memory for 2 ranks");
  EXPECT_EQ(join_shm(segment, 2, 2).error().code, ErrorCode::kInvalidArgument);
  const auto joined = join_shm(segment, 0, 2);
  ASSERT_OK(joined);
  EXPECT_EQ(join_shm(segment, 0, 2).error().code, ErrorCode::kAlreadyExists);
}

TEST(ShmTest, WaitsLongerForARankThatHasNotJoined) {
  const auto segment = std::move(ShmSegment::create(2)).value();
  const auto alone = join_shm(segment, 0, 2, {.silence_limit = milliseconds(1), .join_limit = milliseconds(50)});
  ASSERT_OK(alone);
  const auto result = (*alone)->barrier();
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("rank 1 has not joined within 0.1 s"));
}

// The memory begins as zeros, and nobody writes it before the first wait.
TEST(ShmTest, ARankThatHasNotWaitedYetWaitsForNobody) {
  const auto segment = ShmSegment::create(2).value();
  EXPECT_EQ(segment->signs()[1].waits_for(), (SignOfLife::WaitsFor{-1, -1}));
  SignOfLife::Waiting waiting(segment->sign(1));
  waiting.is_for(0);
  EXPECT_EQ(segment->signs()[1].waits_for(), (SignOfLife::WaitsFor{0, -1}));
}

// Rank 1 says nothing and computes, piece by piece, for ten times as long as it may be silent.
TEST(ShmTest, WhatARankComputesIsASignOfItsLife) {
  testing::FakeClock clock;
  const auto segment = ShmSegment::create(2).value();
  const GroupOptions options{.longest_sleep = milliseconds(1), .clock = &clock};
  Ranks ranks;
  for (const int rank : {0, 1}) ranks.push_back(join_shm(segment, rank, 2, options).value());
  on_each(ranks, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      const SignOfLife& sign = segment->signs()[1];
      for (int second = 0; second < 50; ++second) {
        clock.advance(std::chrono::seconds(1));
        while (sign.when() < clock.now()) {  // until rank 0, which waits, notices
          segment->pulse(1).beats[0].count += 1;
          std::this_thread::yield();
        }
      }
    }
    EXPECT_OK(comm.barrier());
  });
}

// Rank 2 computes all the while. Rank 1 waits for it in a group of their own, and rank 0 for both of them.
TEST(ShmTest, WhoWaitsForOneThatComputesIsNotSilent) {
  testing::FakeClock clock;
  const auto segment = ShmSegment::create(3).value();
  const GroupOptions options{.silence_limit = seconds(5), .longest_sleep = milliseconds(1), .clock = &clock};
  Ranks ranks;
  for (const int rank : {0, 1, 2}) ranks.push_back(join_shm(segment, rank, 3, options).value());
  on_each(ranks, [&](Communicator& comm) {
    const auto own = std::move(comm.split(comm.rank() == 0 ? 0 : 1, 0, "own")).value();
    if (comm.rank() == 2) {
      for (int second = 0; second < 50; ++second) {
        clock.advance(std::chrono::seconds(1));
        while (!segment->failure() && std::min(segment->signs()[1].when(), segment->signs()[2].when()) < clock.now()) {
          segment->pulse(2).beats[0].count += 1;
          std::this_thread::yield();
        }
      }
    }
    EXPECT_OK(own->barrier());
    EXPECT_OK(comm.barrier());
  });
}

// More ranks than bytes of a slot can be shared among evenly.
TEST(ShmTest, SharesOfManyRanksFitTheirSlots) {
  constexpr int kRanks = 65;
  const auto segment = ShmSegment::create(kRanks).value();
  Ranks ranks;
  for (int rank = 0; rank < kRanks; ++rank) ranks.push_back(join_shm(segment, rank, kRanks, {}).value());
  on_each(ranks, [&](Communicator& comm) {
    for (int call = 0; call < 4; ++call) {
      std::vector<int64_t> sums(40'000, comm.rank() + call);
      ASSERT_OK(comm.all_reduce({}, Element::kI64, sums.data(), sums.data(), sums.size(), Reduction::kSum));
      EXPECT_EQ(std::ranges::count(sums, kRanks * (kRanks - 1) / 2 + kRanks * call), std::ssize(sums));
    }
  });
}

// Rank 1 has computed since rank 0 last waited for it, and hangs since.
TEST(ShmTest, WhatARankHadComputedBeforeAWaitIsNoSignOfItsLife) {
  testing::FakeClock clock;
  const auto segment = ShmSegment::create(2).value();
  const GroupOptions options{.silence_limit = seconds(5), .longest_sleep = milliseconds(1), .clock = &clock};
  Ranks ranks;
  for (const int rank : {0, 1}) ranks.push_back(join_shm(segment, rank, 2, options).value());
  clock.advance(seconds(3));
  segment->pulse(1).beats[0].count += 1;
  auto waited = std::async(std::launch::async, [&] { return ranks[0]->barrier(); });
  const TimePoint until = real_clock().now() + kBound;
  while (segment->signs()[0].waits_for()[0] != 1 && real_clock().now() < until) std::this_thread::yield();
  clock.advance(seconds(60));  // far beyond the limit: of the real time of this test some may be lost
  if (waited.wait_for(kBound) != std::future_status::ready) segment->abort("it waits on");
  const auto result = waited.get();
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("no sign of rank 1 for 63.0 s"));
}

TEST(ShmTest, WhyThereIsNoCommonMemoryIsSaidByTheRankThatAsked) {
  constexpr size_t kTooMuch = size_t{1} << 50;
  auto ranks = make_ranks(*std::ranges::find(communicators(), "shm", &CommunicatorRow::name), 2);
  on_each(ranks, [](Communicator& comm) {
    const auto memory = comm.common_memory(kTooMuch);
    ASSERT_FALSE(memory.ok());
    EXPECT_EQ(memory.error().code, ErrorCode::kExhausted);
    EXPECT_THAT(memory.error().message,
                HasSubstr(comm.rank() == 0 ? "bytes are left in the memory that ranks share" : "rank 0 could not get"));
    EXPECT_OK(comm.barrier());
  });
}

TEST(ShmTest, RefusesADescriptorThatIsNoSegment) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_EQ(ShmSegment::open(ends[0]).error().code, ErrorCode::kProtocol);
  ::close(ends[0]);
  ::close(ends[1]);
}

constexpr std::string_view kText = "what only this test sends, again and again, to the other ranks. ";

// Rank 0 of two sends `count` bytes of kText to the other, from lent memory or its own.
Result<void> send_text(Communicator& comm, Kind kind, int64_t count, bool lent) {
  const auto bytes = static_cast<size_t>(2 * count);
  std::vector<std::byte> own(bytes), out(bytes);
  std::byte* in = own.data();
  if (lent) {
    SLUICE_TRY(void* const buffer, comm.buffer({}, bytes));
    in = static_cast<std::byte*>(buffer);
  }
  // To what is sent a reduction adds nothing.
  for (size_t at = 0; comm.rank() == 0 && at < bytes; at += kText.size()) {
    std::memcpy(in + at, kText.data(), kText.size());
  }
  const std::vector<int64_t> counts = {count, count};
  switch (kind) {
    case Kind::kBroadcast:
      return comm.broadcast({}, Element::kU8, comm.rank() == 0 ? in : out.data(), count, 0);
    case Kind::kAllGather:
      return comm.all_gather({}, Element::kU8, in, out.data(), count);
    case Kind::kAllToAll:
      return comm.all_to_all_v({}, Element::kU8, in, counts, out.data(), counts);
    default:
      return comm.reduce_scatter({}, Element::kU8, in, out.data(), count);
  }
}

constexpr size_t kSlotsOfTwo = 2 << 20;  // or less

// From where it was lent to where it is wanted: nothing of it lies anywhere in between.
TEST(ShmTest, WhatLiesInLentMemoryIsCopiedOnce) {
  for (const Kind kind : {Kind::kBroadcast, Kind::kAllGather, Kind::kAllToAll, Kind::kReduceScatter}) {
    for (const size_t texts : {size_t{1}, size_t{64}, size_t{16'384}}) {
      for (const bool lent : {true, false}) {
        SCOPED_TRACE(fmt::format("{}, {} texts, lent: {}", to_string(kind), texts, lent));
        const auto segment = ShmSegment::create(2).value();
        Ranks ranks;
        for (const int rank : {0, 1}) ranks.push_back(join_shm(segment, rank, 2).value());
        on_each(ranks, [&](Communicator& comm) {
          EXPECT_OK(send_text(comm, kind, static_cast<int64_t>(texts * kText.size()), lent));
        });
        const auto between = segment->map(segment->first_group(), kSlotsOfTwo).value();
        const std::string_view seen(reinterpret_cast<const char*>(between.at()), between.bytes());
        EXPECT_EQ(seen.find(kText) == std::string_view::npos, lent);
      }
    }
  }
}

TEST(ShmTest, LendsTwoPiecesOfMemoryInTurn) {
  auto ranks = make_ranks(*std::ranges::find(communicators(), "shm", &CommunicatorRow::name), 2);
  on_each(ranks, [](Communicator& comm) {
    constexpr int64_t kCount = 4 << 20;
    std::vector<uint8_t> out(2 * kCount);
    for (uint8_t round = 0; round < 4; ++round) {
      auto* const in = static_cast<uint8_t*>(comm.buffer({}, kCount).value());
      std::fill_n(in, kCount, static_cast<uint8_t>(comm.rank() + round));
      ASSERT_OK(comm.all_gather({}, Element::kU8, in, out.data(), kCount));
      EXPECT_EQ(std::ranges::count(out, round), kCount);
      EXPECT_EQ(std::ranges::count(out, round + 1), kCount);
    }
  });
}

}  // namespace
}  // namespace sluice::parallel
