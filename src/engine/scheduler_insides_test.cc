// Hidden states and routed experts of requests, and rows in place of embeddings.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

class SchedulerInsidesTest : public SchedulerTest {
 protected:
  // Of every token but the last.
  static std::vector<float> all_hidden(const std::vector<int32_t>& prompt, const std::vector<int32_t>& output) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), output.begin(), output.end());
    std::vector<float> out;
    for (size_t n = 1; n < tokens.size(); ++n) {
      const auto row = hidden_after(std::span(tokens).first(n));
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }
  static std::vector<int32_t> all_experts(const std::vector<int32_t>& prompt, const std::vector<int32_t>& output) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), output.begin(), output.end());
    std::vector<int32_t> out;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      out.insert(out.end(), {0, 0, tokens[i], tokens[i] + 1, 0, 0});  // of three layers
    }
    return out;
  }
};

TEST_F(SchedulerInsidesTest, HiddenStatesAreThoseOfEveryPositionInChunksAndDespiteACachedPrefix) {
  make(small());
  scheduler_->add(request("before", ids(40)));
  run_until_idle();
  auto r = request("r", ids(40), 5);
  r.return_hidden_states = true;
  scheduler_->add(r);
  scheduler_->add(request("beside", ids(20, 7)));
  run_until_idle();
  EXPECT_EQ(answers_["r"].cached_tokens, 0);
  EXPECT_EQ(answers_["r"].hidden_states, all_hidden(ids(40), answers_["r"].ids));
  const auto& before = answers_["before"].ids;
  EXPECT_EQ(answers_["r"].ids, (std::vector<int32_t>(before.begin(), before.begin() + 5)));
  EXPECT_TRUE(answers_["beside"].hidden_states.empty());
}

TEST_F(SchedulerInsidesTest, HiddenStatesComeBesideLogprobsOfThePrompt) {
  make(small());
  for (const int64_t from : {0, 17, 39}) {
    auto r = request(fmt::format("r{}", from), ids(40), 3);
    r.return_hidden_states = r.return_logprob = true;
    r.logprob_start_len = from;
    scheduler_->add(r);
    run_until_idle();
    const auto& got = answers_[r.rid];
    EXPECT_EQ(got.hidden_states, all_hidden(ids(40), got.ids));
    expect_equal(got.input_logprobs, alone(r, scheduler_->max_req_len()).input_logprobs);
  }
}

TEST_F(SchedulerInsidesTest, ARetractionLosesNoHiddenStateAndRepeatsNone) {
  make(small());
  for (int i = 0; i < 4; ++i) {
    auto r = request(fmt::format("r{}", i), ids(30, i), 90);
    r.return_hidden_states = true;
    scheduler_->add(r);
  }
  run_until_idle();
  int64_t retractions = 0;
  for (int i = 0; i < 4; ++i) {
    const auto& got = answers_[fmt::format("r{}", i)];
    retractions += got.retractions;
    EXPECT_EQ(got.hidden_states, all_hidden(ids(30, i), got.ids));
  }
  EXPECT_GT(retractions, 0);
}

TEST_F(SchedulerInsidesTest, PrefillAloneHasTheHiddenStatesOfThePrompt) {
  make(small());
  auto r = request("r", ids(20), 0);
  r.return_hidden_states = true;
  scheduler_->add(r);
  run_until_idle();
  auto want = all_hidden(ids(20), {1});
  EXPECT_EQ(answers_["r"].hidden_states, want);
}

TEST_F(SchedulerInsidesTest, RoutedExpertsOfACachedPrefixAreThoseOfWhoComputedIt) {
  auto options = small();
  options.keep_routed_experts = true;
  options.page_size = 4;
  make(options);
  for (const char* name : {"first", "second"}) {
    auto r = request(name, ids(40), 6);
    r.return_routed_experts = true;
    scheduler_->add(r);
    run_until_idle();
    EXPECT_EQ(answers_[name].routed_experts, all_experts(ids(40), answers_[name].ids)) << name;
  }
  EXPECT_GT(answers_["second"].cached_tokens, 30);
  scheduler_->add(request("third", ids(40)));
  run_until_idle();
  EXPECT_TRUE(answers_["third"].routed_experts.empty());
}

TEST_F(SchedulerInsidesTest, AnAbortAfterARetractionHasTheExpertsOfWhatWasComputed) {
  auto options = small();
  options.keep_routed_experts = true;
  make(options);
  const auto send = [&](const std::string& rid) {
    auto r = request(rid, ids(40), 50);
    r.return_routed_experts = true;
    scheduler_->add(r);
    while (answers_[rid].ids.size() < 5) step();
    scheduler_->pause(Scheduler::Pause::kRetract);
    EXPECT_EQ(scheduler_->snapshot().num_running_reqs, 0);
  };
  const auto expect_abort = [&](const std::string& rid) {
    scheduler_->abort({.rid = rid});
    step();
    EXPECT_EQ(answers_[rid].finish.kind, FinishKind::kAbort);
    EXPECT_GE(answers_[rid].ids.size(), 5u);
    EXPECT_EQ(answers_[rid].routed_experts, all_experts(ids(40), answers_[rid].ids));
    scheduler_->go_on();
  };
  send("waits");
  expect_abort("waits");
  // Of its prompt a part is computed anew.
  send("begins anew");
  ASSERT_TRUE(scheduler_->flush_cache().ok());
  scheduler_->go_on();
  step();
  EXPECT_EQ(answers_["begins anew"].finished, 0);
  expect_abort("begins anew");
}

TEST_F(SchedulerInsidesTest, HiddenStatesOfAllThatRunAreBoundAndOthersPassThoseThatWait) {
  auto options = small();
  options.most_answer_bytes = (2 * 2 * 28 + 10) * sizeof(float);  // two requests, and not three
  make(options);
  for (int i = 0; i < 5; ++i) {
    auto r = request(fmt::format("r{}", i), ids(20, i), 8);
    r.return_hidden_states = true;
    scheduler_->add(r);
  }
  auto wide = request("wide", ids(60), 40);  // more than all may hold
  wide.return_hidden_states = true;
  scheduler_->add(wide);
  scheduler_->add(request("plain", ids(10), 4));
  int64_t most = 0;
  while (!scheduler_->idle()) {
    step();
    if (answers_["plain"].finished > 0) most = std::max(most, scheduler_->snapshot().num_running_reqs);
    if (answers_["r1"].finished == 0) {
      EXPECT_TRUE(answers_["r2"].ids.empty());
    }
    if (answers_["r4"].finished == 0) {
      EXPECT_TRUE(answers_["wide"].ids.empty());
    }
  }
  EXPECT_EQ(most, 2);
  EXPECT_EQ(answers_["plain"].ids.size(), 4u);
  for (int i = 0; i < 5; ++i) {
    const auto& got = answers_[fmt::format("r{}", i)];
    EXPECT_EQ(got.hidden_states, all_hidden(ids(20, i), got.ids));
  }
  EXPECT_EQ(answers_["wide"].hidden_states, all_hidden(ids(60), answers_["wide"].ids));
}

TEST_F(SchedulerInsidesTest, LogprobsOfAllThatRunAreBoundTogether) {
  auto options = small();
  // Of 20 tokens of a prompt, and 8 of output until they are sent.
  options.most_answer_bytes = 2 * 28 * (sizeof(PositionLogprobs) + 3 * sizeof(TokenLogprob));
  make(options);
  for (int i = 0; i < 5; ++i) {
    auto r = request(fmt::format("r{}", i), ids(20, i), 20);
    r.return_logprob = true;
    r.stream_interval = 8;
    r.logprob_start_len = 0;
    r.top_logprobs_num = 2;
    r.token_ids_logprob = {7};
    scheduler_->add(r);
  }
  int64_t most = 0;
  while (!scheduler_->idle()) {
    step();
    most = std::max(most, scheduler_->snapshot().num_running_reqs);
  }
  EXPECT_EQ(most, 2);
  for (int i = 0; i < 5; ++i) {
    const auto& got = answers_[fmt::format("r{}", i)];
    EXPECT_EQ(got.input_logprobs.size(), 20u);
    EXPECT_EQ(got.output_logprobs.size(), got.ids.size());
  }
}

// It begins as one that came before it, and that waits for memory which it keeps.
TEST_F(SchedulerInsidesTest, ARetractedRequestGoesOnBesideATwinThatWaitsForItsMemory) {
  auto options = small();
  options.policy = find_schedule_policy("lpm");
  options.most_answer_bytes = 2 * 98 * sizeof(float) + sizeof(PositionLogprobs) / 2;
  make(options);
  scheduler_->add(request("beside", ids(40), 60));
  step();
  const auto add_with_hidden = [&](const std::string& rid, int64_t output) {
    auto r = request(rid, ids(40), output);
    r.return_hidden_states = true;
    scheduler_->add(r);
  };
  add_with_hidden("first", 8);
  while (answers_["first"].ids.empty()) step();
  add_with_hidden("wide", 58);
  auto twin = request("twin", ids(40), 20);
  twin.return_logprob = true;
  scheduler_->add(twin);
  step();
  ASSERT_FALSE(answers_["twin"].ids.empty()) << "its prompt is in the cache";
  ASSERT_TRUE(answers_["wide"].ids.empty());
  scheduler_->pause(Scheduler::Pause::kRetract);
  for (const char* rid : {"beside", "first"}) scheduler_->abort({.rid = rid});
  ASSERT_TRUE(scheduler_->flush_cache().ok());
  scheduler_->go_on();
  run_until_idle();
  EXPECT_EQ(answers_["twin"].ids.size(), 20u);
  EXPECT_EQ(answers_["wide"].ids.size(), 58u);
}

// The most urgent of all waits for memory that one has which those between them preempt.
TEST_F(SchedulerInsidesTest, WhatAnUrgentRequestWaitsForIsNotKeptByOneThatNeverGoesOn) {
  auto options = small();
  options.priorities.enabled = true;
  options.max_running_requests = 1;
  options.most_answer_bytes = 60 * static_cast<int64_t>(sizeof(float));  // one request, and not two
  make(options);
  const auto add = [&](const std::string& rid, int64_t priority, bool hidden) {
    auto r = request(rid, ids(20, static_cast<int64_t>(scheduler_->snapshot().steps_total)), 10);
    r.priority = priority;
    r.return_hidden_states = hidden;
    scheduler_->add(r);
  };
  add("holder", 0, true);
  while (answers_["holder"].ids.empty()) step();
  add("plain", 50, false);
  while (answers_["plain"].ids.empty()) step();
  ASSERT_GT(scheduler_->snapshot().retracted_total, 0u) << "it has taken the holder's place";
  add("urgent", 100, true);
  // Some less urgent request is always there.
  for (int i = 0; i < 200 && answers_["urgent"].finished == 0; ++i) {
    if (i % 5 == 0) add(fmt::format("r{}", i), 50, false);
    step();
  }
  EXPECT_EQ(answers_["urgent"].finished, 1);
}

TEST_F(SchedulerInsidesTest, EmbeddingsReachTheStepThatComputesTheirTokens) {
  make(small());
  std::vector<float> seen;
  int64_t tokens_without_id = 0;
  runner_->on_forward = [&](const models::StepBatch& batch) {
    seen.insert(seen.end(), batch.embeds.begin(), batch.embeds.end());
    tokens_without_id += std::count(batch.token_ids.begin(), batch.token_ids.end(), -1);
  };
  auto r = request("r", std::vector<int32_t>(40, -1), 4);
  for (int i = 0; i < 40; ++i) r.input_embeds.insert(r.input_embeds.end(), {static_cast<float>(i), 0.5f});
  scheduler_->add(r);
  scheduler_->add(request("beside", ids(10)));
  run_until_idle();
  EXPECT_EQ(answers_["r"].finish.kind, FinishKind::kLength);
  EXPECT_EQ(tokens_without_id, 40);
  EXPECT_EQ(seen, r.input_embeds);
  scheduler_->add(request("no", {3, -1}));
  run_until_idle();
  EXPECT_EQ(answers_["no"].finish.status_code, 400);
}

}  // namespace
}  // namespace sluice::engine
