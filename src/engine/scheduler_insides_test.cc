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
