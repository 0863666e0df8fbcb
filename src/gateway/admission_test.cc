#include "gateway/admission.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using Entry = Admission::Entry;

std::shared_ptr<Admission::Waiter> waiter(std::vector<int>* woken = nullptr, int name = 0) {
  auto made = std::make_shared<Admission::Waiter>();
  made->wake = [woken, name] {
    if (woken != nullptr) woken->push_back(name);
  };
  return made;
}

class AdmissionTest : public ::testing::Test {
 protected:
  sluice::testing::FakeClock clock_;
};

TEST_F(AdmissionTest, WithoutALimitEverybodyEntersAndIsCounted) {
  Admission admission(-1, 0, clock_);
  ASSERT_TRUE(admission.try_enter());
  ASSERT_EQ(admission.enter(waiter()), Entry::kAdmitted);
  EXPECT_EQ(admission.in_flight(), 2);
  {
    Admission::Slot one(&admission), two(&admission);
    Admission::Slot moved = std::move(one);
  }
  EXPECT_EQ(admission.in_flight(), 0) << "each slot is given back once";
}

TEST_F(AdmissionTest, IsFirstComeFirstServed) {
  std::vector<int> woken;
  const auto first = waiter(&woken, 1), second = waiter(&woken, 2);
  Admission admission(1, 2, clock_);
  ASSERT_TRUE(admission.try_enter());
  {
    Admission::Slot slot(&admission);
    EXPECT_FALSE(admission.try_enter());
    ASSERT_EQ(admission.enter(first), Entry::kQueued);
    ASSERT_EQ(admission.enter(second), Entry::kQueued);
    EXPECT_EQ(admission.enter(waiter()), Entry::kFull);
    EXPECT_EQ(admission.queued(), 2u);
  }
  EXPECT_EQ(woken, std::vector<int>{1});
  EXPECT_EQ(admission.in_flight(), 1) << "the slot went from hand to hand";
  EXPECT_FALSE(admission.try_enter()) << "nobody overtakes the queue";
  ASSERT_TRUE(admission.leave(first));
  { Admission::Slot slot(&admission); }
  EXPECT_EQ(woken, (std::vector<int>{1, 2}));
  ASSERT_TRUE(admission.leave(second));
  { Admission::Slot slot(&admission); }
  EXPECT_EQ(admission.in_flight(), 0);
}

TEST_F(AdmissionTest, WhoLeavesTheQueueIsNotServed) {
  std::vector<int> woken;
  const auto first = waiter(&woken, 1), second = waiter(&woken, 2);
  Admission admission(1, 2, clock_);
  ASSERT_TRUE(admission.try_enter());
  ASSERT_EQ(admission.enter(first), Entry::kQueued);
  ASSERT_EQ(admission.enter(second), Entry::kQueued);
  EXPECT_FALSE(admission.leave(first));
  EXPECT_EQ(admission.queued(), 1u);
  { Admission::Slot slot(&admission); }
  EXPECT_EQ(woken, std::vector<int>{2});
}

TEST_F(AdmissionTest, WithoutAQueueTheSecondIsRefused) {
  Admission admission(1, 0, clock_);
  ASSERT_TRUE(admission.try_enter());
  EXPECT_EQ(admission.enter(waiter()), Entry::kFull);
}

TEST_F(AdmissionTest, SaysWhenToComeBackFromTheRateOfTheLatestReleases) {
  Admission admission(1, 100, clock_);
  EXPECT_EQ(admission.retry_after_seconds(), 1) << "nothing is known yet";
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(admission.try_enter());
    clock_.advance(2s);
    Admission::Slot slot(&admission);
  }
  ASSERT_TRUE(admission.try_enter());
  for (int i = 0; i < 4; ++i) ASSERT_EQ(admission.enter(waiter()), Entry::kQueued);
  EXPECT_EQ(admission.retry_after_seconds(), 9) << "five are before the next one, 10 were served in 18 s";
}

TEST_F(AdmissionTest, SoManyMayBeginPerSecondInTheirOrder) {
  std::vector<int> woken;
  std::vector<Duration> alarms;
  Admission admission(-1, 2, clock_, /*per_second=*/2);
  admission.set_alarm([&](Duration pause) { alarms.push_back(pause); });
  ASSERT_TRUE(admission.try_enter());
  ASSERT_TRUE(admission.try_enter()) << "a burst of one second";
  EXPECT_FALSE(admission.try_enter());
  const auto first = waiter(&woken, 1), second = waiter(&woken, 2);
  ASSERT_EQ(admission.enter(first), Entry::kQueued);
  ASSERT_EQ(admission.enter(second), Entry::kQueued);
  EXPECT_EQ(admission.enter(waiter()), Entry::kFull);
  ASSERT_EQ(alarms.size(), 1u) << "one at a time";
  EXPECT_GE(alarms[0], 500ms);
  EXPECT_LT(alarms[0], 501ms);
  EXPECT_EQ(admission.retry_after_seconds(), 2) << "the third of those who wait, at two a second";

  { Admission::Slot one(&admission); }
  EXPECT_TRUE(woken.empty()) << "who ends gives no token back";
  clock_.advance(400ms);
  admission.begin_due();
  EXPECT_TRUE(woken.empty());
  ASSERT_EQ(alarms.size(), 2u);
  clock_.advance(alarms[1]);
  EXPECT_FALSE(admission.try_enter()) << "nobody overtakes the queue";
  admission.begin_due();
  EXPECT_EQ(woken, std::vector<int>{1});
  ASSERT_EQ(alarms.size(), 3u);
  clock_.advance(1h);
  admission.begin_due();
  EXPECT_EQ(woken, (std::vector<int>{1, 2}));
  EXPECT_EQ(alarms.size(), 3u) << "nobody waits";
  EXPECT_TRUE(admission.try_enter());
  EXPECT_FALSE(admission.try_enter()) << "an hour's rest is a burst of one second too";
  EXPECT_EQ(admission.in_flight(), 4);
}

TEST_F(AdmissionTest, ARateDoesNotWidenTheBoundOnSlots) {
  std::vector<int> woken;
  Admission admission(2, 2, clock_, /*per_second=*/1000);
  admission.set_alarm([](Duration) { FAIL() << "tokens there are enough"; });
  ASSERT_TRUE(admission.try_enter());
  ASSERT_TRUE(admission.try_enter());
  clock_.advance(1s);
  EXPECT_FALSE(admission.try_enter());
  const auto first = waiter(&woken, 1);
  ASSERT_EQ(admission.enter(first), Entry::kQueued);
  { Admission::Slot one(&admission); }
  EXPECT_EQ(woken, std::vector<int>{1});
}

TEST_F(AdmissionTest, HoldsItsBoundUnderThreads) {
  constexpr int kSlots = 3;
  Admission admission(kSlots, 1000, clock_);
  std::atomic<int> inside{0}, most{0}, served{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        auto mine = std::make_shared<Admission::Waiter>();
        auto woken = std::make_shared<std::atomic<bool>>(false);
        mine->wake = [woken] { woken->store(true), woken->notify_all(); };
        if (!admission.try_enter() && admission.enter(mine) == Entry::kQueued) woken->wait(false);
        Admission::Slot slot(&admission);
        const int now = inside.fetch_add(1) + 1;
        int seen = most.load();
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        served.fetch_add(1);
        inside.fetch_sub(1);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(most, kSlots);
  EXPECT_EQ(served, 1800);
  EXPECT_EQ(admission.in_flight(), 0);
  EXPECT_EQ(admission.queued(), 0u);
}

}  // namespace
}  // namespace sluice::gateway
