// R24, R25: busy is not dead. Which silence counts, with a clock that the test moves.
#include "engine/rank_watch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "base/process.h"
#include "testing/fake_clock.h"

namespace sluice::engine {
namespace {

using namespace std::chrono_literals;
using State = ProcessSigns::State;

constexpr Duration kLimit = 4s;

class RankWatchTest : public ::testing::Test {
 protected:
  // Looks every half second for so long, or until a hang is found.
  std::optional<std::string> look_for(Duration time) {
    for (Duration passed{0}; passed < time; passed += 500ms) {
      clock_.advance(500ms);
      process_.cpu += cpu_per_look_;
      process_.disk_faults += faults_per_look_;
      if (beats_) pulse_.beats[3].count += 1;
      if (auto found = watch_.look(clock_.now(), pulse_, process_, kLimit)) {
        found_after_ = passed + 500ms;
        return found;
      }
    }
    return std::nullopt;
  }

  sluice::testing::FakeClock clock_;
  Pulse pulse_;
  ProcessSigns process_;
  bool beats_ = false;
  Duration cpu_per_look_{};
  uint64_t faults_per_look_ = 0;
  Duration found_after_{};
  RankWatch watch_;
};

TEST_F(RankWatchTest, AStepThatDoesNotEndIsFoundWithItsStepAndLayerWithin5Seconds) {
  pulse_.set({.phase = Pulse::Phase::kStep, .step = 118, .layer = 12});
  EXPECT_EQ(look_for(10s), "no progress for 4.0 s in step 118, layer 12; all its threads wait");
  EXPECT_LE(found_after_, 4500ms);
}

TEST_F(RankWatchTest, AStepOfAnyLengthIsLeftAloneWhileItsPiecesGetDone) {
  pulse_.set({.phase = Pulse::Phase::kStep, .step = 1, .layer = 0});
  beats_ = true;
  EXPECT_EQ(look_for(600s), std::nullopt);
  beats_ = false;
  for (int layer = 1; layer < 50; ++layer) {
    pulse_.set({.phase = Pulse::Phase::kStep, .step = 1, .layer = layer});
    EXPECT_EQ(look_for(3s), std::nullopt) << layer;
  }
}

TEST_F(RankWatchTest, AnEndlessLoopCountsByTheProcessorTimeThatItGets) {
  pulse_.set({.phase = Pulse::Phase::kStep, .step = 2, .layer = 1});
  process_.state = State::kRunnable;
  cpu_per_look_ = 1s;  // of two threads
  EXPECT_EQ(look_for(10s), "no progress for 4.0 s in step 2, layer 1; its process computes");
  EXPECT_LE(found_after_, 4500ms);
}

TEST_F(RankWatchTest, OneThatGetsNoProcessorIsNotDead) {
  pulse_.set({.phase = Pulse::Phase::kStep, .step = 2, .layer = 1});
  process_.state = State::kRunnable;
  EXPECT_EQ(look_for(600s), std::nullopt);
}

TEST_F(RankWatchTest, OneThatWaitsForItsPagesIsNotDead) {
  pulse_.set({.phase = Pulse::Phase::kStep, .step = 2, .layer = 1});
  faults_per_look_ = 1;
  EXPECT_EQ(look_for(600s), std::nullopt);
}

TEST_F(RankWatchTest, LoadingMayBeSilentForAsLongAsItTakesButNotBeStopped) {
  EXPECT_EQ(look_for(600s), std::nullopt);
  process_.state = State::kStopped;
  EXPECT_EQ(look_for(10s), "no progress for 4.0 s while it loads; its process is stopped");
}

TEST_F(RankWatchTest, OneUnderADebuggerIsLeftAlone) {
  pulse_.set({.phase = Pulse::Phase::kBetweenSteps, .step = 7});
  process_.state = State::kTraced;
  EXPECT_EQ(look_for(600s), std::nullopt);
}

TEST_F(RankWatchTest, TimeInWhichTheWatcherSleptDoesNotCount) {
  pulse_.set({.phase = Pulse::Phase::kBetweenSteps, .step = 7});
  EXPECT_EQ(look_for(500ms), std::nullopt);
  clock_.advance(3600s);
  EXPECT_EQ(look_for(500ms), std::nullopt);
  EXPECT_EQ(look_for(10s), "no progress for 4.0 s after step 7; all its threads wait");
}

TEST_F(RankWatchTest, ARestStartsOver) {
  pulse_.set({.phase = Pulse::Phase::kBetweenSteps, .step = 7});
  EXPECT_EQ(look_for(3500ms), std::nullopt);
  watch_.rest();
  EXPECT_EQ(look_for(4s), std::nullopt);
}

// Until `wanted` is what the process shows.
ProcessSigns signs_when(pid_t pid, State wanted) {
  const TimePoint end = real_clock().now() + 20s;
  for (;;) {
    const auto signs = read_process_signs(pid);
    if (signs && signs->state == wanted) return *signs;
    if (real_clock().now() > end) {
      ADD_FAILURE() << "state " << static_cast<int>(wanted) << " was not seen";
      return {};
    }
    std::this_thread::yield();
  }
}

TEST(ProcessSignsTest, TellsWaitingComputingAndStoppedProcessesApart) {
  auto idle = Process::start({.program = "/bin/sleep", .arguments = {"600"}});
  auto busy = Process::start({.program = "/bin/sh", .arguments = {"-c", "while :; do :; done"}});
  ASSERT_TRUE(idle.ok() && busy.ok());
  signs_when(idle->pid(), State::kWaiting);
  const ProcessSigns before = signs_when(busy->pid(), State::kRunnable);
  while (signs_when(busy->pid(), State::kRunnable).cpu == before.cpu) std::this_thread::yield();
  idle->signal(SIGSTOP);
  signs_when(idle->pid(), State::kStopped);
  idle->signal(SIGCONT);
  signs_when(idle->pid(), State::kWaiting);
  const pid_t gone = idle->pid();
  idle->terminate(0s);
  EXPECT_FALSE(read_process_signs(gone).has_value());
}

}  // namespace
}  // namespace sluice::engine
