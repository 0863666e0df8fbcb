// What is particular to ranks that are connected by TCP.
#include "parallel/gloo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <barrier>
#include <filesystem>
#include <fstream>
#include <thread>

#include "parallel/group_fixture.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

Ranks make(int size, const GroupOptions& options = {}) {
  return make_ranks(*std::ranges::find(communicators(), "gloo", &CommunicatorRow::name), size, options);
}

TEST(GlooTest, NamesARankThatIsGone) {
  auto ranks = make(3);
  // Rank 1 has all it needs of the first call before the others have, and its end would be the end of theirs.
  std::barrier all_done(3);
  on_each(ranks, [&](Communicator& comm) {
    comm.progress({.step = 7, .phase = Phase::kGather, .layer = comm.rank()});
    EXPECT_OK(comm.barrier());
    all_done.arrive_and_wait();
    if (comm.rank() == 1) {
      ranks[1].reset();  // as when its process ends: connections close
      return;
    }
    const auto result = comm.barrier();
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::kUnavailable);
    EXPECT_THAT(result.error().message, HasSubstr("has lost rank 1 in barrier #2"));
    EXPECT_THAT(result.error().message,
                HasSubstr("; rank 1 is on 127.0.0.1, last heard of in step 7, layer 1, gather"));
  });
}

TEST(GlooTest, EachCallTellsTheOthersWhereItsRankIs) {
  auto ranks = make(2, {.silence_limit = seconds(600)});  // they say nothing beside their calls
  on_each(ranks, [](Communicator& comm) {
    const auto where = [](int rank, uint32_t step) {
      return Progress{.step = step, .phase = Phase::kDispatch, .layer = rank};
    };
    for (uint32_t step = 1; step < 4; ++step) {
      comm.progress(where(comm.rank(), step));
      ASSERT_OK(comm.barrier());
      const Progress other = comm.last_progress(1 - comm.rank());
      EXPECT_TRUE(other == where(1 - comm.rank(), step) || other == where(1 - comm.rank(), step + 1)) << other.step;
    }
  });
}

TEST(GlooTest, ShowsWhereItIsToWhoeverStartedIt) {
  const auto server = std::move(RendezvousServer::serve("127.0.0.1:0", 1)).value();
  const auto segment = ShmSegment::create(1).value();
  const auto comm = join_gloo({.who = {.rank = 0, .size = 1, .host = "here"},
                               .rendezvous = server->endpoint(),
                               .address = "127.0.0.1",
                               .shown_in = ShmSegment::open(::dup(segment->fd())).value()});
  ASSERT_OK(comm);
  (*comm)->progress({.step = 12, .phase = Phase::kCombine, .layer = 5});
  EXPECT_EQ(to_string(segment->signs()[0].where()), "step 12, layer 5, combine");
}

// Of our threads for gloo. Its own looks at its connections 100 times a second, which this version cannot leave off.
std::string switches_of_our_threads() {
  std::string found;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "status");
    std::string line, text;
    while (std::getline(file, line)) {
      if (line.starts_with("Name:") || line.find("ctxt_switches") != std::string::npos) text += line + "\n";
    }
    if (text.find("sluice-") != std::string::npos) found += text;
  }
  return found;
}

TEST(GlooTest, OurThreadsSleepWhileThereIsNothingToDo) {
  auto ranks = make(2, {.silence_limit = milliseconds(200)});
  on_each(ranks, [](Communicator& comm) { ASSERT_OK(comm.barrier()); });
  // After the last signs of life have gone round nobody wakes any more, for several times what was between them.
  std::string before;
  int same = 0;
  for (const TimePoint until = real_clock().now() + seconds(60); same < 30 && real_clock().now() < until;) {
    std::this_thread::sleep_for(milliseconds(10));
    std::string now = switches_of_our_threads();
    same = now == before ? same + 1 : 0;
    before = std::move(now);
  }
  EXPECT_EQ(same, 30);
  EXPECT_THAT(before, HasSubstr("sluice-look"));
  // And nobody has taken the pause for silence.
  on_each(ranks, [](Communicator& comm) { EXPECT_OK(comm.barrier()); });
}

TEST(GlooTest, SaysWhereItCouldNotListen) {
  const auto server = std::move(RendezvousServer::serve("127.0.0.1:0", 1)).value();
  const auto joined = join_gloo(
      {.who = {.rank = 0, .size = 1, .host = "here"}, .rendezvous = server->endpoint(), .address = "192.0.2.1"},
      {.join_limit = seconds(20)});
  ASSERT_FALSE(joined.ok());
  EXPECT_THAT(joined.error().message, HasSubstr("rank 0 at 192.0.2.1 cannot connect to the others"));
}

TEST(GlooTest, WaitsForTheOthersForABoundedTime) {
  const auto server = std::move(RendezvousServer::serve("127.0.0.1:0", 2)).value();
  const auto joined = join_gloo(
      {.who = {.rank = 0, .size = 2, .host = "here"}, .rendezvous = server->endpoint(), .address = "127.0.0.1"},
      {.join_limit = milliseconds(200)});
  ASSERT_FALSE(joined.ok());
  EXPECT_THAT(joined.error().message, HasSubstr("waited 0.2 s for"));
}

}  // namespace
}  // namespace sluice::parallel
