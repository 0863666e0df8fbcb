#include "gateway/load.h"

#include <gtest/gtest.h>

#include <optional>
#include <thread>
#include <vector>

#include "testing/fake_clock.h"

namespace sluice::gateway {
namespace {

using sluice::testing::FakeClock;

const FakeClock kClock;

size_t line_of(const WorkerLoad& load, const void* field) {
  return static_cast<size_t>(static_cast<const char*>(field) - reinterpret_cast<const char*>(&load)) / 64;
}

TEST(WorkerLoadTest, WhatAChoiceAsksStandsInOneLineAndThatOfThePrefillQueue) {
  const WorkerLoad load;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(&load) % 64, 0u);
  EXPECT_EQ(line_of(load, &load.busy_until), 0u);
  EXPECT_EQ(line_of(load, &load.most_requests), 0u);
  EXPECT_EQ(line_of(load, &load.requests), 0u);
  EXPECT_EQ(line_of(load, &load.polled_tokens), 0u);
  EXPECT_EQ(line_of(load, &load.tokens_since_poll), 0u);
  EXPECT_EQ(line_of(load, &load.polled_kv_usage), 0u);
  EXPECT_EQ(line_of(load, &load.healthy), 0u);
  EXPECT_EQ(line_of(load, &load.breaker), 0u);
  EXPECT_EQ(line_of(load, &load.belief), 0u) << "its first field is the share";
  EXPECT_EQ(reinterpret_cast<uintptr_t>(&load.prefill) % 64, 0u);
  EXPECT_LT(line_of(load, &load.prefill), WorkerLoad::kLeaseBytes / 64);
  EXPECT_EQ(line_of(load, &load.tokens), 2u);
  EXPECT_EQ(line_of(load, &load.seats), 2u);
}

TEST(LoadSlabTest, EachIsAloneAndOutlivesTheSlab) {
  std::vector<std::shared_ptr<WorkerLoad>> loads;
  {
    LoadSlab slab;
    for (int i = 0; i < 5000; ++i) {
      loads.push_back(slab.next());
      loads.back()->requests = i;
    }
  }
  for (int i = 0; i < 5000; ++i) {
    EXPECT_EQ(loads[static_cast<size_t>(i)]->requests, i);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(loads[static_cast<size_t>(i)].get()) % 64, 0u);
  }
  EXPECT_LT(loads.front().use_count(), 16) << "small fleets take little";
}

TEST(WorkerLeaseTest, KnowsHowManyWereBeforeIt) {
  const auto load = std::make_shared<WorkerLoad>();
  std::optional<WorkerLease> first(std::in_place, load, Work{}, kClock);
  WorkerLease second(load, {}, kClock);
  EXPECT_EQ(first->others(), 0);
  EXPECT_EQ(second.others(), 1);
  first.reset();
  const WorkerLease moved = std::move(second);
  EXPECT_EQ(moved.others(), 1);
  EXPECT_EQ(WorkerLease(load, {}, kClock).others(), 1);
}

TEST(WorkerLeaseTest, WhatASuspectTakesSaysNothingOfItsSpeed) {
  FakeClock clock;
  const auto load = std::make_shared<WorkerLoad>();
  const auto ask = [&](int seconds, bool streams) {
    WorkerLease lease(load, {.prompt_tokens = 1000, .new_tokens = 1, .streams = streams}, clock);
    clock.advance(std::chrono::seconds(seconds));
    if (streams) lease.first_token();
    lease.answered(std::nullopt);
  };
  for (int i = 0; i < 4; ++i) ask(1, true);
  const Duration before = load->prefill.service(1000);
  EXPECT_NEAR(seconds(before), 1, 0.01);
  load->suspect = true;
  ask(100, true);
  ask(100, false);
  EXPECT_EQ(load->prefill.service(1000), before);
  load->suspect = false;
  ask(3, true);
  EXPECT_GT(load->prefill.service(1000), before);
}

TEST(WorkerLeaseTest, TakesAndGivesBackWhatItClaims) {
  const auto load = std::make_shared<WorkerLoad>();
  {
    const WorkerLease lease(load, {.prompt_tokens = 100}, kClock);
    EXPECT_EQ(load->requests, 1);
    EXPECT_EQ(load->tokens, 100);
    EXPECT_EQ(load->tokens_since_poll, 100);
    EXPECT_EQ(load->prompt_since_poll, 100);
  }
  EXPECT_EQ(load->requests, 0);
  EXPECT_EQ(load->tokens, 0);
  EXPECT_EQ(load->tokens_since_poll, 0);
  EXPECT_EQ(load->prompt_since_poll, 0);
}

TEST(WorkerLeaseTest, TheFirstTokenEndsTheWorkOfThePrompt) {
  const auto load = std::make_shared<WorkerLoad>();
  {
    WorkerLease lease(load, {.prompt_tokens = 60, .new_tokens = 40}, kClock);
    lease.first_token();
    EXPECT_EQ(load->tokens, 40);
    EXPECT_EQ(load->tokens_since_poll, 100) << "they are held until it ends";
    EXPECT_EQ(load->prompt_since_poll, 0);
    lease.first_token();
    EXPECT_EQ(load->tokens, 0) << "an estimate that was too low stops at zero";
  }
  EXPECT_EQ(load->tokens, 0);
}

// As a poll does when its report comes.
void report(WorkerLoad& load) {
  load.polls += 1;
  load.tokens_since_poll -= load.tokens_since_poll;
  load.prompt_since_poll -= load.prompt_since_poll;
}

TEST(WorkerLeaseTest, WhatAReportHasSeenEndsAsWhatTheReportSaidOfIt) {
  const auto load = std::make_shared<WorkerLoad>();
  {
    const WorkerLease whole(load, {.prompt_tokens = 100, .new_tokens = 50, .streams = false}, kClock);
    report(*load);
  }
  EXPECT_EQ(load->prompt_since_poll, 0) << "when it was computed is known to the report alone";
  EXPECT_EQ(load->tokens_since_poll, -100) << "what it generated is not known, and was not 50 then";
  report(*load);
  {
    WorkerLease stream(load, {.prompt_tokens = 100, .new_tokens = 50}, kClock);
    report(*load);
    stream.first_token();
    EXPECT_EQ(load->prompt_since_poll, -100);
  }
  load->polled_tokens = 40;
  EXPECT_EQ(load->known_tokens(), 0) << "never less";
}

TEST(WorkerLeaseTest, ThePrefixThatIsHeldIsNoWork) {
  FakeClock clock;
  const auto load = std::make_shared<WorkerLoad>();
  const WorkerLease cold(load, {.prompt_tokens = 8000}, clock);
  const Duration one = load->prefill.wait(clock.now());
  const WorkerLease warm(load, {.prompt_tokens = 8000, .matched_share = 0.75}, clock);
  EXPECT_NEAR(seconds(load->prefill.wait(clock.now())), 1.25 * seconds(one), 1e-6);
}

TEST(WorkerLeaseTest, WhatTheAnswerReportsScalesTheBelief) {
  FakeClock clock;
  const auto load = std::make_shared<WorkerLoad>();
  for (int i = 0; i < 60; ++i) {
    WorkerLease lease(load, {.prompt_tokens = 100, .matched_share = 0.8}, clock);
    clock.advance(std::chrono::milliseconds(10));
    lease.answered(PromptReport{.cached_share = 0.4, .output_tokens = 1});
  }
  EXPECT_NEAR(load->belief.share(), 0.5, 0.01);
}

TEST(WorkerLeaseTest, MovingGivesNothingBack) {
  const auto load = std::make_shared<WorkerLoad>(), other = std::make_shared<WorkerLoad>();
  WorkerLease first(load, {.prompt_tokens = 5}, kClock);
  WorkerLease second = std::move(first);
  EXPECT_EQ(load->requests, 1);
  {
    WorkerLease third(other, {.prompt_tokens = 7}, kClock);
    third = std::move(second);
    EXPECT_EQ(load->requests, 1);
  }
  EXPECT_EQ(load->requests, 0);
  EXPECT_EQ(load->tokens, 0);
}

TEST(WorkerLeaseTest, AssignmentReleasesWhatWasHeldOnceTheOtherGoes) {
  const auto load = std::make_shared<WorkerLoad>(), other = std::make_shared<WorkerLoad>();
  {
    WorkerLease lease(load, {.prompt_tokens = 5}, kClock);
    lease = WorkerLease(other, {.prompt_tokens = 7}, kClock);
    EXPECT_EQ(load->requests, 0);
    EXPECT_EQ(other->tokens, 7);
  }
  EXPECT_EQ(other->requests, 0);
}

TEST(WorkerLeaseTest, OutlivesTheWorker) {
  auto load = std::make_shared<WorkerLoad>();
  const WorkerLease lease(load, {.prompt_tokens = 5}, kClock);
  const std::weak_ptr<WorkerLoad> watched = load;
  load.reset();
  EXPECT_FALSE(watched.expired());
}

TEST(WorkerLeaseTest, CountsFromManyThreads) {
  const auto load = std::make_shared<WorkerLoad>();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) {
        WorkerLease lease(load, {.prompt_tokens = i % 50, .new_tokens = i % 7}, kClock);
        if (i % 3 == 0) lease.first_token();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(load->requests, 0);
  EXPECT_EQ(load->tokens, 0);
  EXPECT_EQ(load->prefill.wait(kClock.now()), Duration(0));
}

}  // namespace
}  // namespace sluice::gateway
