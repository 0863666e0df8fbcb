#include "routing/prefill_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
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
      if (!streamed) queue.whole_answer(request.ticket, request.end, request.tokens, 10);
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
    const auto all = static_cast<double>(tokens);
    open.push_back({queue.dispatch(now, all, all, streamed ? 0 : 10), all, first, first + decode});
  }
  return error / counted;
}

TEST(PrefillQueueTest, LearnsTheServiceTimeFromStreams) {
  PrefillQueue queue;
  mean_error(queue, /*streamed=*/true, 100ms, 16ms, 2000, 1);
  EXPECT_NEAR(seconds(queue.service(100)), 0.004, 0.0005);
  EXPECT_NEAR(seconds(queue.service(2000)), 0.042, 0.002);
}

// As a cache leaves them that holds what comes.
TEST(PrefillQueueTest, RemembersWhatWholePromptsCostWhileAllRestsAreAlike) {
  PrefillQueue queue;
  mean_error(queue, /*streamed=*/true, 100ms, 16ms, 2000, 1);
  TimePoint now(100s);
  for (int i = 0; i < 5000; ++i) {
    PrefillQueue::Ticket ticket = queue.dispatch(now, 100);
    now += 4ms;
    queue.first_token(ticket, now);
    queue.learn(ticket, 100, now);
  }
  EXPECT_NEAR(seconds(queue.service(100)), 0.004, 0.0002);
  EXPECT_NEAR(seconds(queue.service(2000)), 0.042, 0.002);
}

// Its decoding is not told from its prompt: a new worker would seem slow, get nothing more and stay so.
TEST(PrefillQueueTest, TheFirstAnswersThatComeWholeDoNotMakeAWorkerKnown) {
  PrefillQueue whole;
  for (int i = 1; i <= 10; ++i) {
    const TimePoint now{i * 1s};
    PrefillQueue::Ticket ticket = whole.dispatch(now, 100, 100, 10);
    whole.whole_answer(ticket, now + 100ms, 100, 10);
    whole.learn(ticket, 100, now + 100ms);
    if (i == 3) {
      EXPECT_FALSE(whole.known());
    }
  }
  EXPECT_TRUE(whole.known());
  PrefillQueue streamed;
  PrefillQueue::Ticket ticket = streamed.dispatch(TimePoint(1s), 100);
  streamed.first_token(ticket, TimePoint(1004ms));
  EXPECT_TRUE(streamed.known());
}

// Prompts of 100 tokens that take 4 ms each and decode `decode`, at random times, `apart` on average. Somebody else's
// prompt of so many tokens is before them.
void answer_whole(PrefillQueue& queue, int64_t before, Duration apart, Duration decode) {
  struct Open {
    PrefillQueue::Ticket ticket;
    TimePoint end;
  };
  Worker worker(2ms, 20us);
  worker.compute(TimePoint(1s), before);
  Rng rng(1);
  std::deque<Open> open;
  for (TimePoint now(1s); now < TimePoint(9s);) {
    for (; !open.empty() && open.front().end <= now; open.pop_front()) {
      Open& its = open.front();
      queue.whole_answer(its.ticket, its.end, 100, 11);
      queue.learn(its.ticket, 100, its.end);
    }
    open.push_back({queue.dispatch(now, 100, 100, 10), worker.compute(now, 100) + decode});
    now += Duration(static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * apart.count()))));
  }
}

TEST(PrefillQueueTest, AQueueThatStoodBeforeAllAnswersIsKnownByWhatOthersDecodeIn) {
  PrefillQueue stands, idles, slow;
  answer_whole(idles, 0, 8ms, 100ms);
  EXPECT_NEAR(idles.decode_time(), 0.010, 0.0003);
  EXPECT_EQ(idles.hidden_wait(idles.decode_time()), Duration(0));
  answer_whole(stands, 3000, 3900us, 100ms);
  EXPECT_GT(stands.decode_time(), 0.012) << "the least that anybody waited there counts as decoding";
  EXPECT_EQ(stands.hidden_wait(0), Duration(0)) << "nobody tells";
  EXPECT_NEAR(seconds(stands.hidden_wait(0.01F)), 10 * (stands.decode_time() - 0.01), 1e-4);
  answer_whole(slow, 0, 8ms, 160ms);
  EXPECT_NEAR(slow.decode_time(), 0.016, 0.0003);
  EXPECT_EQ(slow.hidden_wait(0.01F), Duration(0)) << "it computes nothing half of the time";
  stands.restart();
  EXPECT_EQ(stands.hidden_wait(0.01F), Duration(0));
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

// Seconds.
double prompts_of(const PrefillQueue& queue) { return seconds(queue.backlog()->prompts); }

TEST(PrefillQueueTest, TheBacklogIsThatOfAllWhoWaitWhetherCachedOrNot) {
  PrefillQueue queue;
  TimePoint now(1s);
  PrefillQueue::Ticket waits = queue.dispatch(now, 1000);
  EXPECT_FALSE(queue.backlog()) << "nothing is known of its speed";
  now += 100ms;
  queue.first_token(waits, now);
  EXPECT_EQ(prompts_of(queue), 0);
  PrefillQueue::Ticket first = queue.dispatch(now, 10, 1000, 0);  // believed to be cached nearly wholly
  EXPECT_NEAR(prompts_of(queue), 2 * 0.1, 1e-6) << "twice what it should take, after one answer";
  PrefillQueue::Ticket second = queue.dispatch(now, 500);
  EXPECT_NEAR(prompts_of(queue), 2 * 0.15, 1e-6);
  PrefillQueue::Ticket longer = queue.dispatch(now, 10'000);
  EXPECT_NEAR(prompts_of(queue), 2 * (0.15 + 10), 1e-6) << "ten times the longest so far, a hundred times the time";
  queue.abandon(longer, now);
  queue.abandon(first, now);
  EXPECT_NEAR(prompts_of(queue), 2 * 0.05, 1e-6);
  queue.first_token(second, now + 50ms);
  EXPECT_EQ(prompts_of(queue), 0);
  queue.dispatch(now, 1e12);
  EXPECT_LE(prompts_of(queue), 1e6) << "whatever a client makes of it";
}

TEST(PrefillQueueTest, TheBacklogIsAsWideAsTheTimesOfItsPromptsAre) {
  for (const double spread : {0.0, 0.05, 0.5}) {
    PrefillQueue queue;
    TimePoint now(1s);
    for (int i = 0; i < 40; ++i) {
      PrefillQueue::Ticket ticket = queue.dispatch(now, 30'000);
      now += from_seconds(20 * (i % 2 == 0 ? 1 + spread : 1 - spread));
      queue.first_token(ticket, now);
      queue.learn(ticket, 30'000, now);
    }
    for (int i = 0; i < 3; ++i) queue.dispatch(now, 30'000);
    EXPECT_GE(prompts_of(queue), 60 * (1 + spread) - 1e-3);
    EXPECT_LE(prompts_of(queue), 60 * std::min(2.1, 1.08 + 3.5 * spread)) << spread;
  }
}

TEST(PrefillQueueTest, OfAnAnswerThatComesWholeItIsSaidHowLongItDecodesIfAnybodyKnows) {
  PrefillQueue queue;
  TimePoint now(1s);
  PrefillQueue::Ticket stream = queue.dispatch(now, 1000);
  now += 100ms;
  queue.first_token(stream, now);
  EXPECT_FALSE(queue.backlog()->whole);
  EXPECT_EQ(queue.backlog()->decoding, Duration(0));
  PrefillQueue::Ticket whole = queue.dispatch(now, 100, 100, 20);
  EXPECT_TRUE(queue.backlog()->whole);
  EXPECT_EQ(queue.backlog()->decoding, std::nullopt) << "nothing is known of its decoding";
  now += 60ms;
  queue.whole_answer(whole, now, 100, 10);  // 10 ms for the prompt, and 50 for nine tokens
  PrefillQueue::Ticket another = queue.dispatch(now, 100, 100, 20);
  EXPECT_NEAR(seconds(*queue.backlog()->decoding), 2 * 19 * 0.05 / 9, 1e-3);
  PrefillQueue::Ticket open = queue.dispatch(now, 100, 100, 20, /*open=*/true);
  EXPECT_EQ(queue.backlog()->decoding, std::nullopt) << "the length of one is open";
  queue.abandon(open, now);
  EXPECT_NE(queue.backlog()->decoding, std::nullopt);
  queue.abandon(another, now);
  EXPECT_FALSE(queue.backlog()->whole);
}

// A step of 17 ms for the requests that run, 32 at most; each has 32 tokens, and its prompt costs nothing.
class Batch {
 public:
  // When its first and its last token come.
  std::pair<TimePoint, TimePoint> run(TimePoint now) {
    while (ends_.size() >= 32) {
      now = std::max(now, ends_.front());
      ends_.pop_front();
    }
    const auto step = now.time_since_epoch() / 17ms + 1;
    ends_.push_back(TimePoint(17ms * (step + 31)));
    return {TimePoint(17ms * step), ends_.back()};
  }

 private:
  std::deque<TimePoint> ends_;
};

// So many clients that send their next request when the last is answered. Returns the mean of wait() of the last
// requests, and of what it was.
std::pair<double, double> waits_at_a_batch(bool streamed, int clients) {
  struct Open {
    PrefillQueue::Ticket ticket;
    TimePoint first, last;
    bool told = false;
  };
  PrefillQueue queue;
  Batch batch;
  std::deque<Open> open;
  double believed = 0, real = 0;
  int sent = 0;
  const auto send = [&](TimePoint now) {
    const auto [first, last] = batch.run(now);
    if (++sent > 2000) {
      believed += seconds(queue.wait(now));
      real += std::max(seconds(first - now) - 0.017, 0.0);
    }
    open.push_back({queue.dispatch(now, 10, 10, streamed ? 0 : 32), first, last});
  };
  for (int i = 0; i < clients; ++i) send(TimePoint(1s + i * 5ms));
  for (TimePoint now(1s); sent < 4000; now += 1ms) {
    for (Open& one : open) {
      if (!streamed || one.told || one.first > now) continue;
      one.told = true;
      queue.first_token(one.ticket, now);
    }
    while (open.front().last <= now) {
      Open one = std::move(open.front());
      open.pop_front();
      if (!streamed) queue.whole_answer(one.ticket, now, 10, 32);
      queue.learn(one.ticket, 10, now);
      send(now);
    }
  }
  return {believed / (sent - 2000), real / (sent - 2000)};
}

TEST(PrefillQueueTest, SeesTheWaitForAPlaceInABatchThatIsFull) {
  for (const bool streamed : {true, false}) {
    const auto [believed, real] = waits_at_a_batch(streamed, 64);
    EXPECT_NEAR(real, 0.5, 0.05);
    EXPECT_GT(believed, 0.7 * real) << streamed;
    EXPECT_LT(believed, 1.4 * real) << streamed;
    EXPECT_LT(waits_at_a_batch(streamed, 24).first, 0.02) << "there is room; streamed: " << streamed;
  }
}

TEST(PrefillQueueTest, ALateDiscoveryOfTheSpeedDoesNotMultiplyTheQueue) {
  PrefillQueue queue;
  std::deque<PrefillQueue::Ticket> waiting;
  TimePoint now(1s);
  for (int i = 0; i < 100; ++i) waiting.push_back(queue.dispatch(now, 5 + i % 2 * 40));
  for (int i = 0; i < 90; ++i) {
    now += i < 30 ? 10us : 17ms;  // a batch takes some at once, then one after the other
    queue.first_token(waiting.front(), now);
    queue.learn(waiting.front(), waiting.front().tokens, now);
    waiting.pop_front();
    waiting.push_back(queue.dispatch(now, 5));
    EXPECT_LT(queue.wait(now), 100 * 40ms) << i;
  }
}

// Ten minutes for a prompt whose text is one token, for it was of pictures; then a text of a thousand million.
TEST(PrefillQueueTest, TimesThatNobodyCanWaitForAreStillTimes) {
  PrefillQueue queue;
  TimePoint now(1s);
  for (int i = 0; i < 3; ++i) {
    auto ticket = queue.dispatch(now, 1);
    now += 10min;
    queue.first_token(ticket, now);
    queue.learn(ticket, 1, now);
  }
  const Duration most = from_seconds(PrefillQueue::kMost);
  EXPECT_EQ(queue.service(1e9), most);
  for (int i = 0; i < 20'000; ++i) {
    (void)queue.dispatch(now, 1e9);
    ASSERT_EQ(queue.wait(now), most) << i;
  }
}

}  // namespace
}  // namespace sluice::routing
