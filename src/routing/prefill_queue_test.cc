#include "routing/prefill_queue.h"

#include <gtest/gtest.h>

#include <deque>

#include "base/rng.h"

namespace sluice::routing {
namespace {

using namespace std::chrono_literals;

// A worker that computes prompts one after another: what the queue must find out.
class Worker {
 public:
  explicit Worker(Duration per_request, Duration per_token) : per_request_(per_request), per_token_(per_token) {}

  Duration wait(TimePoint now) const { return std::max(free_at_ - now, Duration(0)); }
  // When the first token comes.
  TimePoint compute(TimePoint now, int64_t tokens) {
    return free_at_ = std::max(now, free_at_) + per_request_ + tokens * per_token_;
  }

 private:
  const Duration per_request_, per_token_;
  TimePoint free_at_{};
};

// Poisson-like arrivals of prompts of 100 or 2000 tokens; answers after `decode` more. Returns the mean error of
// wait().
double mean_error(PrefillQueue& queue, bool streamed, Duration decode, Duration apart, int requests, uint64_t seed) {
  struct Open {
    PrefillQueue::Ticket ticket;
    double tokens;
    TimePoint first_token, end;
    bool told = false;
  };
  Worker worker(2ms, 20us);
  Rng rng(seed);
  std::deque<Open> open;
  TimePoint now(1s);
  double error = 0;
  int counted = 0;
  const auto catch_up = [&] {
    for (Open& request : open) {
      if (streamed && !request.told && request.first_token <= now) {
        queue.first_token(request.ticket, request.first_token);
        request.told = true;
      }
    }
    while (!open.empty() && open.front().end <= now) {
      Open& request = open.front();
      if (!streamed) queue.whole_answer(request.ticket, request.end, 10);
      queue.learn(request.ticket, request.tokens, request.end);
      open.pop_front();
    }
  };
  for (int i = 0; i < requests; ++i) {
    now += Duration(static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * apart.count()))));
    catch_up();
    if (i >= requests / 2) {
      error += std::abs(seconds(queue.wait(now)) - seconds(worker.wait(now)));
      ++counted;
    }
    const int64_t tokens = rng.below(4) == 0 ? 2000 : 100;
    const TimePoint first = worker.compute(now, tokens);
    open.push_back(
        {queue.dispatch(now, static_cast<double>(tokens)), static_cast<double>(tokens), first, first + decode});
  }
  return error / counted;
}

TEST(PrefillQueueTest, LearnsTheServiceTimeFromStreams) {
  PrefillQueue queue;
  mean_error(queue, /*streamed=*/true, 100ms, 16ms, 2000, 1);
  EXPECT_NEAR(seconds(queue.service(100)), 0.004, 0.0005);
  EXPECT_NEAR(seconds(queue.service(2000)), 0.042, 0.002);
}

TEST(PrefillQueueTest, KnowsTheWaitOfABusyWorkerWithinAFewMilliseconds) {
  // Mean service 13.5 ms every 16 ms: mean waits of some 30 ms.
  PrefillQueue streamed;
  EXPECT_LT(mean_error(streamed, true, 100ms, 16ms, 4000, 2), 0.003);
  PrefillQueue whole;
  EXPECT_LT(mean_error(whole, false, 100ms, 16ms, 4000, 2), 0.02) << "without first tokens it is a guess";
}

TEST(PrefillQueueTest, AnIdleWorkerHasNoQueueHoweverLongItDecodes) {
  PrefillQueue queue;
  EXPECT_LT(mean_error(queue, false, 500ms, 400ms, 200, 3), 0.015);
}

TEST(PrefillQueueTest, WhatWasAbandonedIsNotWaitedFor) {
  PrefillQueue queue;
  const TimePoint now(1s);
  PrefillQueue::Ticket first = queue.dispatch(now, 8000);
  const Duration one = queue.wait(now);
  PrefillQueue::Ticket second = queue.dispatch(now, 8000);
  EXPECT_EQ(queue.wait(now), 2 * one);
  queue.abandon(first, now);
  EXPECT_EQ(queue.wait(now), one);
  queue.abandon(first, now);
  EXPECT_EQ(queue.wait(now), one) << "twice is once";
  queue.abandon(second, now);
  EXPECT_EQ(queue.wait(now), Duration(0));
}

TEST(PrefillQueueTest, ARestartBeginsWithoutAQueueAndKeepsWhatIsKnownOfTheSpeed) {
  PrefillQueue queue;
  mean_error(queue, true, 100ms, 16ms, 500, 4);
  const Duration service = queue.service(1000);
  queue.dispatch(TimePoint(100s), 1e6);
  EXPECT_GT(queue.wait(TimePoint(100s)), 10s);
  queue.restart();
  EXPECT_EQ(queue.wait(TimePoint(100s)), Duration(0));
  EXPECT_EQ(queue.service(1000), service);
}

TEST(PrefillQueueTest, TheBacklogIsThatOfAllWhoWaitWhetherCachedOrNot) {
  PrefillQueue queue;
  TimePoint now(1s);
  PrefillQueue::Ticket waits = queue.dispatch(now, 1000);
  EXPECT_EQ(queue.backlog(), std::nullopt) << "nothing is known of its speed";
  now += 100ms;
  queue.first_token(waits, now);
  EXPECT_EQ(queue.backlog(), Duration(0));
  PrefillQueue::Ticket first = queue.dispatch(now, 10, 1000, 0);  // believed to be cached nearly wholly
  EXPECT_NEAR(seconds(*queue.backlog()), 0.1, 1e-6);
  PrefillQueue::Ticket second = queue.dispatch(now, 500);
  EXPECT_NEAR(seconds(*queue.backlog()), 0.15, 1e-6);
  PrefillQueue::Ticket longer = queue.dispatch(now, 10'000);
  EXPECT_NEAR(seconds(*queue.backlog()), 0.15 + 10, 1e-6) << "ten times the longest so far, a hundred times the time";
  queue.abandon(longer, now);
  queue.abandon(first, now);
  EXPECT_NEAR(seconds(*queue.backlog()), 0.05, 1e-6);
  queue.first_token(second, now + 50ms);
  EXPECT_EQ(queue.backlog(), Duration(0));
  PrefillQueue::Ticket whole = queue.dispatch(now, 100, 100, 20);
  EXPECT_EQ(queue.backlog(), std::nullopt) << "nothing is known of its decoding";
  now += 60ms;
  queue.whole_answer(whole, now, 10);  // 10 ms for the prompt, 5 ms for each token
  PrefillQueue::Ticket another = queue.dispatch(now, 100, 100, 20);
  EXPECT_NEAR(seconds(*queue.backlog()), 0.01 + 20 * 0.005, 0.01);
  queue.abandon(another, now);
  queue.dispatch(now, 1e12);
  EXPECT_LE(*queue.backlog(), 1e6 * 1s) << "whatever a client makes of it";
}

}  // namespace
}  // namespace sluice::routing
