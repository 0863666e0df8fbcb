#include "engine/load_board.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace sluice::engine {
namespace {

LoadSnapshot all_equal(int64_t value) {
  LoadSnapshot s;
  s.unix_nanos = s.num_running_reqs = s.num_waiting_reqs = s.num_used_tokens = s.num_waiting_tokens = value;
  s.steps_total = static_cast<uint64_t>(value);
  s.gen_throughput = static_cast<double>(value);
  return s;
}

TEST(LoadBoardTest, ARowIsAbsentUntilItsRankPublishes) {
  auto board = LoadBoard::create(3);
  ASSERT_TRUE(board.ok());
  EXPECT_FALSE(board->read(1));
  board->publish(1, all_equal(5));
  ASSERT_TRUE(board->read(1));
  EXPECT_EQ(board->read(1)->num_used_tokens, 5);
  EXPECT_FALSE(board->read(0));
  EXPECT_FALSE(board->read(2));
}

TEST(LoadBoardTest, AnotherMappingOfTheDescriptorSeesTheRows) {
  auto board = LoadBoard::create(2);
  ASSERT_TRUE(board.ok());
  auto other = LoadBoard::open(dup(board->fd()));
  ASSERT_TRUE(other.ok()) << other.error().message;
  EXPECT_EQ(other->size(), 2);
  other->publish(0, all_equal(9));
  EXPECT_EQ(board->read(0)->steps_total, 9u);
  other->pulse(1).set({.phase = Pulse::Phase::kStep, .step = 7, .layer = 3});
  other->pulse(1).beats[5].count += 2;
  EXPECT_EQ(board->pulse(1).where(), (Pulse::Place{Pulse::Phase::kStep, 7, 3}));
  EXPECT_EQ(board->pulse(1).count(), 2u);
  EXPECT_EQ(board->pulse(0).where(), Pulse::Place{});
}

TEST(LoadBoardTest, AnUnrelatedDescriptorIsAnError) {
  const int fd = ::open("/dev/zero", O_RDONLY);
  ASSERT_GE(fd, 0);
  EXPECT_FALSE(LoadBoard::open(fd).ok());
}

TEST(LoadBoardTest, ReadersNeverSeeHalfASnapshot) {
  auto board = LoadBoard::create(1);
  ASSERT_TRUE(board.ok());
  board->publish(0, all_equal(1));
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int64_t i = 2; !stop.load(std::memory_order_relaxed); ++i) board->publish(0, all_equal(i));
  });
  int64_t last = 0;
  for (int i = 0; i < 20000; ++i) {
    const auto s = board->read(0);
    if (!s) continue;  // the writer was held up
    ASSERT_EQ(s->num_running_reqs, s->unix_nanos);
    ASSERT_EQ(s->num_waiting_tokens, s->unix_nanos);
    ASSERT_EQ(static_cast<int64_t>(s->steps_total), s->unix_nanos);
    ASSERT_EQ(s->gen_throughput, static_cast<double>(s->unix_nanos));
    ASSERT_GE(s->unix_nanos, last);
    last = s->unix_nanos;
  }
  stop = true;
  writer.join();
  EXPECT_GE(last, 1);
}

}  // namespace
}  // namespace sluice::engine
