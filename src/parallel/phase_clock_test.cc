#include "parallel/phase_clock.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "testing/fake_clock.h"

namespace sluice::parallel {
namespace {

using std::chrono::microseconds;

Duration spent(const RecordedStep& step, Phase phase) { return step.spent[static_cast<size_t>(phase)]; }

TEST(PhaseClockTest, AStepIsDividedAmongItsPhasesAndNothingIsLost) {
  testing::FakeClock clock;
  Duration queued{};
  PhaseClock phases(clock, [&] { return queued; });
  phases.start(10);
  phases.arrive(6);  // nobody has work: there is no step
  clock.advance(microseconds(500));
  queued += microseconds(400);
  phases.leave();
  const TimePoint begun = clock.now();
  phases.arrive(7);
  clock.advance(microseconds(3));
  queued += microseconds(1);
  phases.leave();
  clock.advance(microseconds(2));
  queued += microseconds(50);
  for (int layer = 0; layer < 2; ++layer) {
    PhaseClock::enter(Phase::kAttention);
    clock.advance(microseconds(10));
    PhaseClock::enter(Phase::kExperts);
    clock.advance(microseconds(20));
  }
  PhaseClock::enter(Phase::kHead);
  clock.advance(microseconds(5));
  phases.end_step(4, true);
  PhaseClock::enter(Phase::kSample);  // between steps nobody asks
  clock.advance(microseconds(100));

  const auto steps = phases.stop();
  ASSERT_EQ(steps.size(), 1u);
  const RecordedStep& step = steps[0];
  EXPECT_EQ(step.exchange, 7);
  EXPECT_EQ(step.tokens, 4);
  EXPECT_TRUE(step.extend);
  EXPECT_EQ(step.arrived, begun);
  EXPECT_EQ(step.left - begun, microseconds(3));
  EXPECT_EQ(step.queued, microseconds(1));
  EXPECT_EQ(step.ended - begun, microseconds(70));
  EXPECT_EQ(spent(step, Phase::kExchange), microseconds(3));
  EXPECT_EQ(spent(step, Phase::kPlan), microseconds(2));
  EXPECT_EQ(spent(step, Phase::kAttention), microseconds(20));
  EXPECT_EQ(spent(step, Phase::kExperts), microseconds(40));
  EXPECT_EQ(spent(step, Phase::kHead), microseconds(5));
}

// A thread that is always in line, and takes a microsecond to say so.
TEST(PhaseClockTest, NoMoreIsInLineThanLiesBetweenArrivalAndDeparture) {
  testing::FakeClock clock;
  PhaseClock phases(clock, [&] {
    clock.advance(microseconds(1));
    return clock.now().time_since_epoch();
  });
  phases.start(1);
  phases.arrive(1);
  clock.advance(microseconds(3));
  phases.leave();
  phases.end_step(1, false);
  const auto steps = phases.stop();
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0].left - steps[0].arrived, microseconds(5));
  EXPECT_EQ(steps[0].queued, microseconds(4));
}

TEST(PhaseClockTest, WhatIsInLineAfterTheLastSleepIsToldApart) {
  testing::FakeClock clock;
  Duration queued{};
  PhaseClock phases(clock, [&] { return queued; });
  phases.start(2);
  const auto wait = [&](int in_line) {
    clock.advance(microseconds(100));
    queued += microseconds(in_line);
  };
  phases.arrive(1);
  wait(5);
  PhaseClock::fall_asleep();
  wait(7);
  PhaseClock::fall_asleep();
  wait(11);
  phases.leave();
  PhaseClock::fall_asleep();  // of the step
  phases.end_step(1, false);
  phases.arrive(2);
  wait(3);
  phases.leave();
  phases.end_step(1, false);
  const auto steps = phases.stop();
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0].queued, microseconds(23));
  EXPECT_EQ(steps[0].queued_awake, microseconds(11));
  EXPECT_EQ(steps[1].queued_awake, microseconds(0)) << "it did not sleep";
}

std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

TEST(PhaseClockTest, NothingStaysOpenOnceItIsStopped) {
  PhaseClock phases;
  const auto before = open_descriptors();
  phases.start(1);
  phases.start(1);
  EXPECT_LE(open_descriptors(), before + 1);
  phases.stop();
  EXPECT_EQ(open_descriptors(), before);
}

// Where another thread wants the only processor that this one may use.
TEST(PhaseClockTest, TheKernelSaysHowLongAThreadWasInLine) {
  if (!std::ifstream("/proc/thread-self/schedstat")) GTEST_SKIP() << "this kernel does not count it";
  cpu_set_t usable, one;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(usable), &usable), 0);
  CPU_ZERO(&one);
  for (size_t cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
    if (CPU_ISSET(cpu, &usable)) CPU_SET(cpu, &one);
  }
  ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
  PhaseClock phases;
  phases.start(1);
  phases.arrive(1);
  std::atomic<bool> stop{false};
  std::jthread other([&] {  // on the same one: threads inherit
    while (!stop) std::atomic_signal_fence(std::memory_order_seq_cst);
  });
  // Until it has lost its place twice: it keeps its processor no longer than the other lets it.
  const auto switches = [] {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
  };
  const auto before = switches();
  const TimePoint until = real_clock().now() + std::chrono::seconds(30);
  while (switches() < before + 2 && real_clock().now() < until) std::atomic_signal_fence(std::memory_order_seq_cst);
  stop = true;
  other.join();
  EXPECT_EQ(::sched_setaffinity(0, sizeof(usable), &usable), 0);
  ASSERT_GE(switches(), before + 2) << "two threads took no turns on one processor";
  phases.leave();
  phases.end_step(1, false);
  const auto steps = phases.stop();
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_GT(steps[0].queued, Duration::zero());
  EXPECT_LE(steps[0].queued, steps[0].left - steps[0].arrived);
}

TEST(PhaseClockTest, RunsOnTheThreadThatStartedItUntilItIsStopped) {
  testing::FakeClock clock;
  PhaseClock phases(clock);
  phases.arrive(1);
  phases.end_step(1, false);
  EXPECT_TRUE(phases.stop().empty()) << "nobody has started it";
  phases.start(2);
  std::thread([&] {
    EXPECT_FALSE(phases.runs());
    PhaseClock::enter(Phase::kHead);
  }).join();
  for (int i = 1; i <= 3; ++i) {
    phases.arrive(i);
    phases.leave();
    phases.end_step(1, false);
  }
  EXPECT_TRUE(phases.full());
  EXPECT_EQ(phases.stop().size(), 2u) << "it keeps no more than was asked for";
  EXPECT_FALSE(phases.runs());
}

}  // namespace
}  // namespace sluice::parallel
