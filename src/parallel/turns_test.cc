#include "parallel/turns.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <barrier>
#include <future>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "parallel/group_fixture.h"
#include "parallel/overlap.h"
#include "testing/fake_clock.h"

namespace sluice::parallel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(TurnsTest, AreTakenInTheOrderInWhichTheyWereAskedFor) {
  Turns turns;
  turns.take();
  std::vector<int> order;
  const uint64_t second = turns.queue(), third = turns.queue();
  std::thread late([&] {
    turns.take(third);
    order.push_back(3);
    turns.give();
  });
  std::thread early([&] {
    turns.take(second);
    order.push_back(2);
    turns.give();
  });
  order.push_back(1);
  turns.give();
  early.join();
  late.join();
  EXPECT_THAT(order, ElementsAre(1, 2, 3));
}

TEST(TurnsTest, OfTwoThatFollowEachOtherTheSecondWaitsForTheFirst) {
  Turns turns;
  Strand strand(turns);
  const Turn turn(turns);
  std::vector<int> order;
  turns.reach(0);
  strand.begin([&]() -> Result<void> {
    for (int i = 1; i <= 3; ++i) {
      turns.wait_for(i);
      order.push_back(10 * i);
    }
    return {};
  });
  for (int i = 1; i <= 3; ++i) {
    order.push_back(i);
    turns.reach(i);
    turns.yield();
  }
  ASSERT_OK(strand.end());
  ASSERT_EQ(order.size(), 6u);
  for (int i = 1; i <= 3; ++i) EXPECT_LT(std::ranges::find(order, i), std::ranges::find(order, 10 * i));
}

TEST(TurnsTest, AStrandSaysHowItsWorkEndedAndCanBeGivenMore) {
  Turns turns;
  Strand strand(turns);
  const Turn turn(turns);
  for (int i = 0; i < 100; ++i) {
    int done = 0;
    strand.begin([&]() -> Result<void> {
      done = i;
      if (i % 2 == 0) return {};
      return Error{ErrorCode::kUnavailable, "rank 3 is gone"};
    });
    const auto result = strand.end();
    EXPECT_EQ(done, i);
    ASSERT_EQ(result.ok(), i % 2 == 0);
    if (!result.ok()) {
      EXPECT_EQ(result.error().message, "rank 3 is gone");
    }
  }
}

TEST(TurnsTest, WhoThrowsLeavesTheTurnsInOrder) {
  Turns turns;
  Strand strand(turns);
  const Turn turn(turns);
  strand.begin([]() -> Result<void> { throw std::runtime_error("no memory"); });
  const auto result = strand.end();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().message, "no memory");
  EXPECT_THROW(turns.while_away([]() -> int { throw std::runtime_error("no rank"); }), std::runtime_error);
  turns.yield();
}

// Threads of such stacks cannot be.
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t larger;
    pthread_getattr_default_np(&larger);
    pthread_attr_setstacksize(&larger, size_t{1} << 48);
    pthread_setattr_default_np(&larger);
    pthread_attr_destroy(&larger);
  }
  ~NoThreads() {
    pthread_setattr_default_np(&before_);
    pthread_attr_destroy(&before_);
  }

 private:
  pthread_attr_t before_;
};

TEST(TurnsTest, AStrandThatCannotBeStartedLeavesTheTurnsInOrder) {
  Turns turns;
  Strand strand(turns);
  const Turn turn(turns);
  {
    const NoThreads none;
    EXPECT_THROW(strand.begin([]() -> Result<void> { return {}; }), std::system_error);
  }
  turns.yield();  // nobody is queued
  strand.begin([]() -> Result<void> { return {}; });
  EXPECT_OK(strand.end());
}

class OverlapTest : public ::testing::TestWithParam<CommunicatorRow> {};

// What others wait for is computed only once this rank's own call is under way: without a turn to compute in while it
// is, nobody would come.
TEST_P(OverlapTest, ARankComputesWhileItsCallWaitsForOthers) {
  Ranks ranks = make_ranks(GetParam(), 2);
  std::promise<void> computed;
  on_each(ranks, [&](Communicator& world) {
    auto overlap = Overlap::make(world, {.tp_rank = world.rank(), .tp_size = 2});
    ASSERT_OK(overlap);
    Turns& turns = (*overlap)->turns();
    Communicator& all = *(*overlap)->half(0).all;
    int64_t sum = world.rank() + 1;
    const auto add = [&] { return all.all_reduce({}, Element::kI64, &sum, &sum, 1); };
    if (world.rank() == 1) {
      computed.get_future().wait();
      const Turn turn(turns);
      ASSERT_OK(add());
    } else {
      const Turn turn(turns);
      const auto compute = [&]() -> Result<void> {
        turns.yield();
        EXPECT_EQ(sum, 1) << "it is on its way";
        computed.set_value();
        return {};
      };
      ASSERT_OK((*overlap)->both(compute, add));
    }
    EXPECT_EQ(sum, 3);
    EXPECT_GT((*overlap)->received_bytes(), 0u);
    EXPECT_GT((*overlap)->turns().times().away, Duration{});
  });
}

// Ranks may be in another order within their halves: calls of one half do not wait for the other's.
TEST_P(OverlapTest, TheHalvesOfABatchNeedNoCommonOrder) {
  Ranks ranks = make_ranks(GetParam(), 3);
  on_each(ranks, [](Communicator& world) {
    auto overlap = Overlap::make(world, {.tp_rank = world.rank(), .tp_size = 3, .dp_size = 3});
    ASSERT_OK(overlap);
    const Turn turn((*overlap)->turns());
    const auto sums = [&](size_t half, int64_t base) -> Result<void> {
      for (int64_t i = 0; i < 200; ++i) {
        std::vector<int64_t> values(static_cast<size_t>(1 + i * 7 % 600), base + i);
        SLUICE_TRY_VOID((*overlap)->half(half).all->all_reduce({}, Element::kI64, values.data(), values.data(),
                                                               std::ssize(values)));
        if (std::ranges::count(values, 3 * (base + i)) != std::ssize(values)) {
          return Error{ErrorCode::kInternal, "another half's values"};
        }
      }
      return {};
    };
    const auto own = static_cast<size_t>(world.rank() % 2);  // which of them is this thread's
    EXPECT_OK((*overlap)->both([&] { return sums(own, own == 0 ? 0 : 1000); },
                               [&] { return sums(1 - own, own == 0 ? 1000 : 0); }));
  });
}

TEST_P(OverlapTest, WhoMissesARankNamesTheHalfAndWhoIsMissing) {
  Ranks ranks = make_ranks(GetParam(), 2, {.silence_limit = std::chrono::seconds(2)});
  std::promise<void> reported;
  on_each(ranks, [&](Communicator& world) {
    auto overlap = Overlap::make(world, {.tp_rank = world.rank(), .tp_size = 2});
    ASSERT_OK(overlap);
    if (world.rank() == 1) return reported.get_future().wait();
    const Turn turn((*overlap)->turns());
    Result<void> first, second;
    EXPECT_FALSE((*overlap)
                     ->both([&] { return first = (*overlap)->half(0).all->barrier(); },
                            [&] { return second = (*overlap)->half(1).all->barrier(); })
                     .ok());
    reported.set_value();
    ASSERT_FALSE(first.ok());
    ASSERT_FALSE(second.ok());
    EXPECT_EQ(first.error().message, second.error().message) << "the first reason stays";
    EXPECT_THAT(first.error().message, HasSubstr("half: rank 0"));
    EXPECT_THAT(first.error().message, HasSubstr("rank 1"));
  });
}

// One part throws while the other waits for a rank, or for the first one's mark: the other ranks hear of it at once,
// and the rank's other part ends.
TEST_P(OverlapTest, WhatOnePartThrowsFailsTheWorldAndEndsTheOther) {
  enum class Throws { kFirst, kFirstBeforeAMark, kSecond };
  for (const Throws throws : {Throws::kFirst, Throws::kFirstBeforeAMark, Throws::kSecond}) {
    Ranks ranks = make_ranks(GetParam(), 2, {.silence_limit = std::chrono::hours(1)});
    // Until both have heard: gloo reads no more from a rank that writes to memory which is gone.
    std::array<std::unique_ptr<Overlap>, 2> overlaps;
    std::barrier both_made(2);  // a failure ends calls of the making too
    on_each(ranks, [&](Communicator& world) {
      auto made = Overlap::make(world, {.tp_rank = world.rank(), .tp_size = 2});
      both_made.arrive_and_wait();
      ASSERT_OK(made);
      auto& overlap = overlaps[static_cast<size_t>(world.rank())];
      overlap = std::move(*made);
      const size_t thrower = throws == Throws::kSecond ? 1 : 0;
      const auto call = [&](size_t half) { return overlap->half(half).all->barrier(); };
      Turns& turns = overlap->turns();
      const Turn turn(turns);
      if (world.rank() == 1) {  // is where the other will not come
        const auto failed = call(thrower);
        ASSERT_FALSE(failed.ok());
        EXPECT_THAT(failed.error().message, HasSubstr("rank 0: no memory"));
        return;
      }
      const auto part = [&](size_t half) -> Result<void> {
        if (half == 0) turns.yield();
        if (half == thrower) throw std::runtime_error("no memory");
        if (throws == Throws::kFirstBeforeAMark) turns.wait_for(1);
        const auto failed = call(half);
        EXPECT_FALSE(failed.ok());
        return failed;
      };
      const auto both = [&] { return overlap->both([&] { return part(0); }, [&] { return part(1); }); };
      if (throws == Throws::kSecond) {
        EXPECT_FALSE(both().ok());
      } else {
        EXPECT_THROW((void)both(), std::runtime_error);
      }
      turns.yield();  // in order
      EXPECT_THAT(world.failure()->message, HasSubstr("rank 0: no memory"));
    });
  }
}

TEST_P(OverlapTest, OneHalfIsEnoughWhereBatchesAreWhole) {
  Ranks ranks = make_ranks(GetParam(), 2);
  on_each(ranks, [](Communicator& world) {
    auto overlap = Overlap::make(world, {.tp_rank = world.rank(), .tp_size = 2}, /*halves=*/1);
    ASSERT_OK(overlap);
    EXPECT_EQ((*overlap)->halves(), 1u);
    const Turn turn((*overlap)->turns());
    EXPECT_OK((*overlap)->half(0).all->barrier());
  });
}

INSTANTIATE_TEST_SUITE_P(Members, OverlapTest, ::testing::ValuesIn(communicators()),
                         [](const auto& info) { return std::string(info.param.name); });

// Time away is covered by what the other part computes in it.
TEST(TurnsTest, CountHowMuchOfTheTimeAwayWasUsed) {
  testing::FakeClock clock;
  Turns turns(clock);
  Strand strand(turns);
  const Turn turn(turns);
  std::promise<void> arrives;
  strand.begin([&]() -> Result<void> {
    return turns.while_away([&]() -> Result<void> {
      arrives.get_future().wait();
      return {};
    });
  });
  turns.yield();
  clock.advance(std::chrono::seconds(3));
  turns.while_away([&] {  // both are away
    clock.advance(std::chrono::seconds(1));
    return 0;
  });
  arrives.set_value();
  ASSERT_OK(strand.end());
  const auto [away, covered] = turns.times();
  EXPECT_EQ(away, std::chrono::seconds(4 + 1));
  EXPECT_EQ(covered, std::chrono::seconds(3));
}

}  // namespace
}  // namespace sluice::parallel
