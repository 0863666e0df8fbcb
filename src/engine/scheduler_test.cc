#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

TEST_F(SchedulerTest, OneRequestGetsTheModelsTokens) {
  make(small());
  const auto r = request("a", ids(40), 12);
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, alone(r, scheduler_->max_req_len()).ids);
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kLength);
  EXPECT_EQ(answers_["a"].prompt_tokens, 40);
  EXPECT_LE(runner_->largest_step, 16) << "the prompt was not cut into chunks";
}

TEST_F(SchedulerTest, ASecondTurnUsesTheCachedPrefix) {
  make(small());
  scheduler_->add(request("a", ids(40), 5));
  run_until_idle();
  EXPECT_EQ(answers_["a"].cached_tokens, 0);
  auto turn = ids(40);
  turn.insert(turn.end(), answers_["a"].ids.begin(), answers_["a"].ids.end());
  turn.push_back(7);
  const int64_t before = runner_->computed;
  const auto r = request("b", turn, 3);
  scheduler_->add(r);
  run_until_idle();
  // All but the last output token of the first turn, whose KV was never needed.
  EXPECT_EQ(answers_["b"].cached_tokens, 44);
  EXPECT_EQ(runner_->computed - before, 46 - 44 + 2);
  EXPECT_EQ(answers_["b"].ids, alone(r, scheduler_->max_req_len()).ids);
}

TEST_F(SchedulerTest, TheSamePromptAgainStillComputesOneToken) {
  make(small());
  scheduler_->add(request("a", ids(20), 0));
  run_until_idle();
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kLength);
  EXPECT_TRUE(answers_["a"].ids.empty()) << "prefill only";
  scheduler_->add(request("b", ids(20), 1));
  run_until_idle();
  EXPECT_EQ(answers_["b"].cached_tokens, 19);
  EXPECT_EQ(answers_["b"].ids.size(), 1u);
}

TEST_F(SchedulerTest, NamespacesShareNothing) {
  make(small());
  scheduler_->add(request("a", ids(20)));
  run_until_idle();
  auto r = request("b", ids(20));
  r.extra_key = "tenant";
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["b"].cached_tokens, 0);
}

TEST_F(SchedulerTest, FinishReasonsSayWhatMatched) {
  make(small());
  auto r = request("plain", ids(10), 40);
  const auto tokens = alone(r, scheduler_->max_req_len()).ids;
  auto by_token = request("token", ids(10), 40);
  by_token.sampling.ignore_eos = false;
  by_token.sampling.stop_token_ids = {tokens[3]};
  auto by_string = request("string", ids(10), 40);
  by_string.sampling.stop = {"zzz",
                             std::string(token_bytes(tokens[4]).substr(1)) + std::string(token_bytes(tokens[5]))};
  for (const auto& q : {by_token, by_string}) scheduler_->add(q);
  run_until_idle();
  for (const auto& q : {by_token, by_string}) {
    const SchedulerAnswer want = alone(q, scheduler_->max_req_len());
    EXPECT_EQ(answers_[q.rid].ids, want.ids);
    EXPECT_EQ(answers_[q.rid].finish.kind, want.finish.kind);
    EXPECT_EQ(answers_[q.rid].finish.matched_token, want.finish.matched_token);
    EXPECT_EQ(answers_[q.rid].finish.matched_string, want.finish.matched_string);
  }
  EXPECT_EQ(answers_["string"].finish.kind, FinishKind::kStopString);
}

TEST_F(SchedulerTest, AnswersComeEveryStreamInterval) {
  make(small());
  auto r = request("a", ids(4), 12);
  r.stream_interval = 5;
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["a"].messages, 4);  // at tokens 1, 6, 11 and at the end
  EXPECT_EQ(answers_["a"].ids.size(), 12u);
}

TEST_F(SchedulerTest, WhatCannotBeServedIsRefusedWithItsReason) {
  auto options = small();
  options.max_queued_requests = 2;
  make(options);
  const auto refused = [&](GenerateRequest r, int32_t status, const std::string& needle) {
    const std::string rid = r.rid;
    scheduler_->add(std::move(r));
    collect();
    const SchedulerAnswer& a = answers_[rid];
    EXPECT_EQ(a.finish.kind, FinishKind::kAbort);
    EXPECT_EQ(a.finish.status_code, status);
    EXPECT_NE(a.finish.message.find(needle), std::string::npos) << a.finish.message;
  };
  EXPECT_EQ(scheduler_->max_req_len(), 149);
  refused(request("long", ids(144)), 400, "Input length (144 tokens) exceeds the maximum allowed length (143 tokens)");
  refused(request("none", {}), 400, "at least one");
  refused(request("alien", {1, kVocab}), 400, "vocabulary");
  auto r = request("late", ids(4));
  r.logprob_start_len = 4;
  refused(r, 400, "logprob_start_len");
  scheduler_->add(request("w1", ids(3)));
  refused(request("w1", ids(3)), 400, "in use");
  answers_.clear();
  scheduler_->add(request("w2", ids(3)));
  refused(request("w3", ids(3)), 503, "The request queue is full.");
  run_until_idle();
  EXPECT_EQ(answers_["w1"].finish.kind, FinishKind::kLength);
}

TEST_F(SchedulerTest, OutputIsClippedToTheContext) {
  make(small());
  scheduler_->add(request("a", ids(100), 1'000'000));
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids.size(), 149u - 100 - 1);
}

TEST_F(SchedulerTest, AnAbortFreesEverythingInEveryPhase) {
  auto options = small();
  options.max_running_requests = 2;
  make(options);
  scheduler_->add(request("running", ids(10), 50));
  step();
  scheduler_->add(request("chunked", ids(60, 3), 50));
  step();
  scheduler_->add(request("waiting", ids(10, 5), 50));
  step();
  auto load = scheduler_->snapshot();
  EXPECT_EQ(load.num_running_reqs, 2);
  EXPECT_EQ(load.num_waiting_reqs, 1);
  EXPECT_EQ(load.num_waiting_tokens, 10);
  EXPECT_FALSE(scheduler_->flush_cache().ok());
  for (const auto* rid : {"chunked", "waiting", "running"}) {
    scheduler_->abort({.rid = rid});
    scheduler_->check_invariants();
    collect();
    EXPECT_EQ(answers_[rid].finish.kind, FinishKind::kAbort) << rid;
    EXPECT_EQ(answers_[rid].finish.message, "Aborted");
  }
  EXPECT_TRUE(scheduler_->idle());
  EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 0);
  EXPECT_EQ(scheduler_->snapshot().aborted_total, 3u);
  ASSERT_TRUE(scheduler_->flush_cache().ok());
  EXPECT_EQ(scheduler_->snapshot().num_cached_tokens, 0);
}

TEST_F(SchedulerTest, AHealthCheckIsAnsweredAtOnceUnderLoadAndGeneratesWhenIdle) {
  make(small());
  const auto check = [&](const std::string& rid) {
    GenerateRequest one = request(rid, {0}, 1);
    one.is_health_check = true;
    scheduler_->add(std::move(one));
  };
  check("HEALTH_CHECK_1");
  run_until_idle();
  EXPECT_EQ(answers_["HEALTH_CHECK_1"].ids.size(), 1u);
  scheduler_->add(request("a", ids(10), 5));
  check("HEALTH_CHECK_2");
  scheduler_->add(request("HEALTH_CHECK_3", {0}, 1));
  collect();
  EXPECT_EQ(answers_["HEALTH_CHECK_2"].finish.kind, FinishKind::kLength);
  EXPECT_EQ(scheduler_->snapshot().requests_total, 2u) << "health checks are not traffic";
  run_until_idle();
  EXPECT_TRUE(answers_["HEALTH_CHECK_2"].ids.empty());
  EXPECT_EQ(answers_["HEALTH_CHECK_3"].ids.size(), 1u) << "a client's, whatever its name";
}

TEST_F(SchedulerTest, DroppingAPlanLeavesNoTrace) {
  make(small());
  scheduler_->add(request("a", ids(30), 5));
  scheduler_->add(request("b", ids(30), 5));
  for (int i = 0; i < 6; ++i) {
    const auto before = scheduler_->snapshot();
    const StepPlan first = scheduler_->plan();
    const StepPlan second = scheduler_->plan();
    ASSERT_EQ(first.sequences.size(), second.sequences.size());
    for (size_t k = 0; k < first.sequences.size(); ++k) {
      EXPECT_EQ(first.sequences[k].request, second.sequences[k].request);
      EXPECT_EQ(first.sequences[k].new_tokens, second.sequences[k].new_tokens);
      EXPECT_EQ(first.sequences[k].cached, second.sequences[k].cached);
    }
    EXPECT_EQ(scheduler_->snapshot().num_used_tokens, before.num_used_tokens);
    EXPECT_EQ(scheduler_->snapshot().num_waiting_reqs, before.num_waiting_reqs);
    step();
  }
  run_until_idle();
}

TEST_F(SchedulerTest, RunningOutOfPoolRetractsAndLosesNoToken) {
  auto options = small();
  options.kv_slots = 101;
  options.conservativeness = 0;  // admits as if nobody generated anything
  make(options);
  std::vector<GenerateRequest> all;
  for (int i = 0; i < 4; ++i) all.push_back(request(fmt::format("r{}", i), ids(12, 7 * i), 70));
  for (const auto& r : all) scheduler_->add(r);
  run_until_idle();
  EXPECT_GT(scheduler_->snapshot().retracted_total, 0u);
  int64_t retractions = 0;
  for (const auto& r : all) {
    EXPECT_EQ(answers_[r.rid].ids, alone(r, scheduler_->max_req_len()).ids);
    retractions += answers_[r.rid].retractions;
  }
  EXPECT_EQ(static_cast<uint64_t>(retractions), scheduler_->snapshot().retracted_total);
}

TEST_F(SchedulerTest, TheReserveFallsWhileDecodingAndRisesWithARetraction) {
  auto options = small();
  options.kv_slots = 101;
  options.conservativeness = 0.1;
  make(options);
  EXPECT_NEAR(scheduler_->new_token_ratio(), 0.07, 1e-12);
  for (int i = 0; i < 4; ++i) scheduler_->add(request(fmt::format("r{}", i), ids(12, 7 * i), 70));
  double last = scheduler_->new_token_ratio();
  bool rose = false;
  while (!scheduler_->idle()) {
    const auto retracted = scheduler_->snapshot().retracted_total;
    step();
    const double now = scheduler_->new_token_ratio();
    if (scheduler_->snapshot().retracted_total > retracted) {
      rose |= now > last;
    } else if (!scheduler_->idle()) {
      EXPECT_LE(now, last);
    }
    last = now;
  }
  EXPECT_TRUE(rose);
  EXPECT_NEAR(scheduler_->new_token_ratio(), 0.07, 1e-12) << "starts anew when idle";
}

TEST_F(SchedulerTest, LongestPrefixGoesFirstAndTwinsWaitForTheFirstOfThem) {
  auto options = small();
  options.policy = find_schedule_policy("lpm");
  options.chunked_prefill_size = 0;
  options.max_running_requests = 8;
  options.kv_slots = 1001;
  make(options);
  scheduler_->add(request("warm", ids(60, 9), 0));
  run_until_idle();
  scheduler_->add(request("cold1", ids(50, 2), 1));
  scheduler_->add(request("cold2", ids(50, 2), 1));
  scheduler_->add(request("hot", ids(60, 9), 1));
  const StepPlan plan = scheduler_->plan();
  ASSERT_EQ(plan.sequences.size(), 2u);
  EXPECT_EQ(plan.sequences[0].request->in.rid, "hot");
  EXPECT_EQ(plan.sequences[1].request->in.rid, "cold1");
  run_until_idle();
  EXPECT_EQ(answers_["cold2"].cached_tokens, 49) << "the twin did not wait";
}

TEST_F(SchedulerTest, SeededSamplesDoNotDependOnTheBatch) {
  auto options = small();
  options.kv_slots = 2001;
  options.max_running_requests = 16;
  make(options);
  auto r = request("alone", ids(9), 30);
  r.sampling.temperature = 1.0;
  r.sampling.seed = 1234;
  scheduler_->add(r);
  run_until_idle();
  for (int i = 0; i < 10; ++i) {
    auto other = request(fmt::format("o{}", i), ids(5 + i, i), 30);
    other.sampling.temperature = 1.0;
    scheduler_->add(other);
  }
  r.rid = "crowd";
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["crowd"].ids, answers_["alone"].ids);
  EXPECT_NE(answers_["o1"].ids, answers_["o2"].ids);
}

// A rank sleeps until then.
TEST_F(SchedulerTest, WhenNothingHappensNothingIsDueOnceItsFiguresAreThoseOfRest) {
  make(small());
  EXPECT_FALSE(scheduler_->next_due());
  scheduler_->add(request("a", ids(4), 20));
  run_until_idle();
  int looks = 0;
  for (scheduler_->snapshot(); const auto due = scheduler_->next_due(); ++looks) {
    ASSERT_LT(looks, 4);
    ASSERT_GT(*due, clock_.now()) << "due at once, for ever";
    clock_.advance(*due - clock_.now());
    scheduler_->snapshot();
  }
  EXPECT_GE(looks, 2);
  EXPECT_EQ(scheduler_->snapshot().gen_throughput, 0.0);
}

TEST_F(SchedulerTest, ThroughputIsOverTheLastWindow) {
  make(small());
  scheduler_->add(request("a", ids(4), 20));
  run_until_idle();
  clock_.advance(std::chrono::seconds(2));
  EXPECT_DOUBLE_EQ(scheduler_->snapshot().gen_throughput, 10.0);
  clock_.advance(std::chrono::seconds(2));
  EXPECT_DOUBLE_EQ(scheduler_->snapshot().gen_throughput, 0.0);
  EXPECT_EQ(scheduler_->snapshot().generation_tokens_total, 20u);
  EXPECT_EQ(scheduler_->snapshot().prompt_tokens_total, 4u);
}

}  // namespace
}  // namespace sluice::engine
