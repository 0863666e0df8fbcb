// What the scheduler says about itself and its requests, and that aborts leave nothing behind.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>

#include "base/rng.h"
#include "engine/scheduler_fixture.h"
#include "testing/seed.h"

namespace sluice::engine {
namespace {

using namespace std::chrono_literals;

class SchedulerReportTest : public SchedulerTest {};

TEST_F(SchedulerReportTest, TimesOfARequestAreThoseOfItsPhases) {
  make(small());
  runner_->on_forward = [this](const models::StepBatch&) { clock_.advance(2s); };
  scheduler_->add(request("a", ids(32), 2));  // two chunks of 16
  clock_.advance(3s);
  const int64_t begun = clock_.unix_nanos();
  RequestTimes last;
  while (!scheduler_->idle()) {
    ASSERT_TRUE(scheduler_->step().ok());
    for (const auto& out : scheduler_->take_outputs()) last = out.times;
  }
  EXPECT_EQ(last.queue, 3.0);
  EXPECT_EQ(last.begun_unix_nanos, begun);
  EXPECT_EQ(last.prefill, 4.0);
  EXPECT_EQ(last.prefilled_unix_nanos, begun + 4'000'000'000);
  const auto load = scheduler_->snapshot();
  EXPECT_EQ(load.forward_seconds[0], 4.0);
  EXPECT_EQ(load.forward_seconds[1], 2.0);
  EXPECT_EQ(load.forward_seconds[2], 0.0);
}

TEST_F(SchedulerReportTest, MixedStepsCountAsSuch) {
  auto options = small();
  options.mixed_chunk = true;
  make(options);
  runner_->on_forward = [this](const models::StepBatch&) { clock_.advance(1s); };
  scheduler_->add(request("a", ids(8), 20));
  step();
  scheduler_->add(request("b", ids(40, 5), 2));
  run_until_idle();
  EXPECT_GT(scheduler_->snapshot().forward_seconds[2], 0.0);
}

// Takes `more` time for each token than for the one before.
class SlowGrammar final : public Grammar {
  class State final : public GrammarState {
   public:
    State(testing::FakeClock& clock, Duration more) : clock_(clock), more_(more) {}
    bool allowed(std::span<uint32_t> mask) override {
      std::ranges::fill(mask, ~uint32_t{0});
      clock_.advance(++tokens_ * more_);
      return true;
    }
    bool accept(int32_t) override { return true; }
    bool finished() const override { return false; }

   private:
    testing::FakeClock& clock_;
    const Duration more_;
    int tokens_ = 0;
  };

 public:
  SlowGrammar(testing::FakeClock& clock, Duration more) : clock_(clock), more_(more) {}
  std::unique_ptr<GrammarState> start() const override { return std::make_unique<State>(clock_, more_); }
  size_t bytes() const override { return 1; }

 private:
  testing::FakeClock& clock_;
  const Duration more_;
};

TEST_F(SchedulerReportTest, WhatGrammarsCostIsToldOfEachRequest) {
  make(small());
  auto held = request("a", ids(8), 3);
  held.sampling.grammar_kind = GrammarKind::kRegex;
  held.sampling.ignore_eos = true;
  scheduler_->add(held, std::make_shared<SlowGrammar>(clock_, 64ms));
  scheduler_->add(request("b", ids(4, 9), 3));
  run_until_idle();
  const GrammarWalks walks = scheduler_->snapshot().grammar_walks;
  const auto at = [](double value) {
    return std::ranges::lower_bound(kGrammarWalkSeconds, value) - std::begin(kGrammarWalkSeconds);
  };
  EXPECT_EQ(walks.mean.counts[at(0.128)], 1u);
  EXPECT_DOUBLE_EQ(walks.mean.sums[at(0.128)], 0.128);
  EXPECT_EQ(walks.longest.counts[at(0.192)], 1u);
  EXPECT_DOUBLE_EQ(walks.longest.sums[at(0.192)], 0.192);
}

TEST_F(SchedulerReportTest, AGrammarThatTakesLongerAndLongerEndsItsRequest) {
  make(small());
  auto held = request("a", ids(8), 100);
  held.sampling.grammar_kind = GrammarKind::kEbnf;
  held.sampling.grammar_field = "ebnf";
  held.sampling.ignore_eos = true;
  scheduler_->add(held, std::make_shared<SlowGrammar>(clock_, 30ms));
  scheduler_->add(request("b", ids(4, 9), 20));
  run_until_idle();
  const auto& finish = answers_["a"].finish;
  EXPECT_EQ(finish.kind, FinishKind::kAbort);
  EXPECT_EQ(finish.status_code, 400);
  EXPECT_EQ(finish.message.rfind("ebnf takes too long, 0.3 s for the next token", 0), 0u) << finish.message;
  EXPECT_EQ(answers_["a"].ids.size(), 8u) << "the third that is late ends it, the ninth";
  EXPECT_EQ(answers_["b"].ids.size(), 20u);
}

TEST_F(SchedulerReportTest, StatesOfSequencesInFlightAreTold) {
  auto options = small();
  make(options);
  EXPECT_EQ(scheduler_->snapshot().max_total_states, 0) << "a model without";
  options.radix.state_rows = 3;
  make(options);
  scheduler_->add(request("a", ids(8), 8));
  step();
  EXPECT_EQ(scheduler_->snapshot().num_used_states, 1);
  EXPECT_EQ(scheduler_->snapshot().max_total_states, options.max_running_requests + 3);
  run_until_idle();
  EXPECT_EQ(scheduler_->snapshot().num_used_states, 0);
}

TEST_F(SchedulerReportTest, WhatAbortedRequestsHadNotReachedIsAbsent) {
  make(small());
  scheduler_->add(request("a", ids(8)));
  scheduler_->abort({.rid = "a"});
  const auto out = scheduler_->take_outputs().at(0);
  EXPECT_EQ(out.times.begun_unix_nanos, 0);
  EXPECT_EQ(out.times.prefilled_unix_nanos, 0);
}

TEST_F(SchedulerReportTest, DecodingSequencesAndTheReserveAreTold) {
  make(small());
  EXPECT_EQ(scheduler_->snapshot().new_token_ratio, scheduler_->new_token_ratio());
  scheduler_->add(request("a", ids(8), 8));
  scheduler_->add(request("b", ids(4, 9), 8));
  for (int i = 0; i < 3; ++i) step();
  int64_t lengths = 0;
  for (const auto& [rid, answer] : answers_) lengths += answer.completion_tokens + (rid == "a" ? 8 : 4);
  EXPECT_EQ(scheduler_->snapshot().decode_sum_seq_lens, lengths);
  EXPECT_EQ(scheduler_->snapshot().new_token_ratio, scheduler_->new_token_ratio());
}

TEST_F(SchedulerReportTest, RetractedAndEvictedTokensAreCounted) {
  auto options = small();
  options.kv_slots = 61;
  options.conservativeness = 0.01;  // so that the pool runs out
  make(options);
  runner_->on_forward = [this](const models::StepBatch&) { clock_.advance(1ms); };
  for (int i = 0; i < 4; ++i) scheduler_->add(request(fmt::format("r{}", i), ids(8, 3 * i), 30));
  int64_t most_waiting = 0;
  while (!scheduler_->idle()) {
    step();
    most_waiting = std::max(most_waiting, scheduler_->snapshot().num_retracted_reqs);
  }
  const auto load = scheduler_->snapshot();
  ASSERT_GT(load.retracted_total, 0u);
  EXPECT_GT(most_waiting, 0);
  EXPECT_EQ(load.num_retracted_reqs, 0);
  EXPECT_EQ(load.retracted_input_tokens_total, 8 * load.retracted_total);
  EXPECT_GE(load.retracted_output_tokens_total, load.retracted_total);
  uint64_t evictions = 0;
  for (const uint64_t count : load.eviction_seconds.counts) evictions += count;
  EXPECT_GT(load.evicted_tokens_total, 0u);
  EXPECT_GT(evictions, 0u);
}

TEST_F(SchedulerReportTest, RoutingKeysAreCountedByTheirRequests) {
  auto options = small();
  options.max_running_requests = 2;
  make(options);
  const auto add = [&](const std::string& rid, const std::string& key) {
    auto r = request(rid, ids(4), 30);
    r.routing_key = key;
    scheduler_->add(r);
  };
  for (const char* rid : {"a", "b", "c", "d"}) add(rid, rid[0] == 'a' ? "x" : "y");
  add("e", "");
  for (int i = 0; i < 3; ++i) step();
  clock_.advance(1s);
  const auto keys = scheduler_->snapshot().routing_keys;
  EXPECT_EQ(keys.unique_running, 2);
  EXPECT_EQ(keys.running[0], 2) << "a of x, b of y";
  EXPECT_EQ(keys.all[0], 1) << "x";
  EXPECT_EQ(keys.all[2], 1) << "y has three";
  run_until_idle();
  clock_.advance(1s);
  EXPECT_EQ(scheduler_->snapshot().routing_keys.unique_running, 0);
}

class SchedulerAbortTest : public SchedulerTest, public ::testing::WithParamInterface<Steps> {};

INSTANTIATE_TEST_SUITE_P(Steps, SchedulerAbortTest, ::testing::Values(Steps::kInline, Steps::kPuppet, Steps::kThread),
                         name_of);

// E1: a request may end at any point of its way; whatever it held is free at once, or with the step in flight.
TEST_P(SchedulerAbortTest, TenThousandAbortsInEveryPhaseLeaveNothing) {
  auto options = small();
  options.page_size = 4;
  options.kv_slots = 164;
  options.max_running_requests = 6;
  options.mixed_chunk = true;
  options.conservativeness = 0.1;  // retractions, too
  make(options, GetParam());
  Rng rng(7);
  int aborts = 0;
  uint64_t next = 0;
  std::map<std::string, int> seen;  // phases in which requests were aborted
  std::vector<std::string> alive;
  const auto phase_of = [&](const std::string& rid) -> std::string {
    if (scheduler_->in_flight() > 0) return "in flight, perhaps";
    for (const auto& s : scheduler_->plan().sequences) {
      if (s.request->in.rid != rid) continue;
      if (s.request->phase == Request::Phase::kWaiting) return "about to start";
      return s.request->phase == Request::Phase::kChunked ? "between chunks" : "decoding";
    }
    return answers_.contains(rid) ? "held back after it ran" : "waiting";
  };
  while (aborts < 10'000) {
    for (uint64_t n = rng.below(4); n > 0 && alive.size() < 20; --n) {
      alive.push_back(fmt::format("r{}", next++));
      scheduler_->add(request(alive.back(),
                              ids(1 + static_cast<int64_t>(rng.below(60)), static_cast<int32_t>(next % 5)),
                              static_cast<int64_t>(rng.below(50))));
    }
    for (uint64_t n = rng.below(3); n > 0 && !alive.empty(); --n) {
      const size_t which = rng.below(alive.size());
      ++seen[phase_of(alive[which])];
      scheduler_->abort({.rid = alive[which]});
      alive.erase(alive.begin() + static_cast<std::ptrdiff_t>(which));
      ++aborts;
    }
    if (rng.below(500) == 0) {
      aborts += static_cast<int>(alive.size());
      scheduler_->abort({.all = true});
    }
    step();
    std::erase_if(alive, [&](const std::string& rid) { return answers_.contains(rid) && answers_[rid].finished > 0; });
    std::erase_if(answers_, [](const auto& answer) { return answer.second.finished > 0; });
    scheduler_->check_invariants();
  }
  scheduler_->abort({.all = true});
  ASSERT_TRUE(scheduler_->settle().ok());
  collect();
  EXPECT_TRUE(scheduler_->idle());
  scheduler_->check_invariants();
  const auto load = scheduler_->snapshot();
  EXPECT_EQ(load.num_running_reqs + load.num_waiting_reqs, 0);
  EXPECT_EQ(load.num_used_tokens, 0);
  if (GetParam() == Steps::kInline) {
    EXPECT_GT(load.retracted_total, 0u);
    for (const char* phase : {"waiting", "about to start", "between chunks", "decoding"})
      EXPECT_GT(seen[phase], 50) << phase;
  } else {
    EXPECT_GT(seen["in flight, perhaps"], 1000);
  }
  ASSERT_TRUE(scheduler_->flush_cache().ok());
}

// X10: a chunk that is computed with others, or by several ranks, is not ended before its time. Its request is answered
// at once, what it holds is free with the last step that was in flight then, and no later step has a token of it.
TEST_P(SchedulerAbortTest, X10AChunkAmongOthersHoldsWhatItHasNoLongerThanTheStepsInFlight) {
  constexpr int64_t kPrompt = 4, kChunk = 16;
  Rng rng(sluice::testing::test_seed(9));
  int within = 0;
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    auto options = small();
    options.mixed_chunk = true;
    options.prefix_cache = false;
    options.chunked_prefill_size = kChunk;
    make(options, GetParam(), /*seed=*/static_cast<uint64_t>(round + 1));
    std::atomic<int> with_chunk{0};
    runner_->on_forward = [&](const models::StepBatch& b) { with_chunk += b.token_ids.size() > 1; };
    scheduler_->add(request("stays", ids(kPrompt, 3), 60));
    step();
    scheduler_->add(request("leaves", ids(120)));
    for (auto steps = 1 + rng.below(5); steps > 0; --steps) step();
    ASSERT_EQ(answers_["leaves"].finished, 0);
    int in_flight = scheduler_->in_flight();
    if (GetParam() == Steps::kInline) {
      runner_->ask_between_layers([&, layer = 0]() mutable {
        if (layer++ == 1) scheduler_->abort({.rid = "leaves"});
        return scheduler_->step_is_wanted();
      });
      with_chunk = 0;
      in_flight = 1;
    } else {
      scheduler_->abort({.rid = "leaves"});
      collect();
      EXPECT_EQ(answers_["leaves"].finish.kind, FinishKind::kAbort) << "at once";
    }
    for (int i = 0; i < in_flight; ++i) step();
    EXPECT_EQ(answers_["leaves"].finish.kind, FinishKind::kAbort);
    within += in_flight;
    // A slot for each step that is planned ahead.
    EXPECT_LE(scheduler_->snapshot().num_used_tokens, kPrompt + std::ssize(answers_["stays"].ids) + 2);
    ASSERT_TRUE(scheduler_->settle().ok());
    with_chunk = 0;
    run_until_idle();
    EXPECT_EQ(with_chunk, 0) << "a step after those in flight";
    EXPECT_EQ(answers_["stays"].ids, alone(request("stays", ids(kPrompt, 3), 60), scheduler_->max_req_len()).ids);
  }
  EXPECT_GT(within, 100) << "steps that were in flight";
}

}  // namespace
}  // namespace sluice::engine
