// The variables of the environment, and what each of them changes.
#include "engine/scheduler_tuning.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

constexpr const char* kVariables[] = {"SGLANG_INIT_NEW_TOKEN_RATIO",
                                      "SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR",
                                      "SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS",
                                      "SGLANG_RETRACT_DECODE_STEPS",
                                      "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION",
                                      "IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD",
                                      "IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD"};

class SchedulerTuningTest : public SchedulerTest {
 protected:
  void SetUp() override { TearDown(); }
  void TearDown() override {
    for (const char* name : kVariables) unsetenv(name);
  }
  static SchedulerOptions with(const char* name, const char* value, SchedulerOptions options = small()) {
    setenv(name, value, 1);
    const auto tuning = scheduler_tuning_from_environment();
    EXPECT_TRUE(tuning.ok()) << tuning.error().message;
    if (tuning.ok()) options.tuning = *tuning;
    return options;
  }
  size_t planned() const { return scheduler_->plan().sequences.size(); }
};

TEST_F(SchedulerTuningTest, WhatIsNoNumberOrOutsideItsRangeIsRefusedByName) {
  const std::vector<std::vector<const char*>> wrong = {
      {"1.1", "-0.1", "x", "0.5s", "nan"}, {"2", "-1"},  {"0", "1.5", "-600"}, {"-1", "many"},
      {"0", "99999999999999999999"},       {"-2", "3 "}, {"0", "-1"}};
  for (size_t i = 0; i < std::size(kVariables); ++i) {
    for (const char* value : wrong[i]) {
      setenv(kVariables[i], value, 1);
      const auto tuning = scheduler_tuning_from_environment();
      ASSERT_FALSE(tuning.ok()) << kVariables[i] << "=" << value;
      EXPECT_EQ(tuning.error().code, ErrorCode::kBadOption);
      EXPECT_TRUE(tuning.error().message.starts_with(std::string(kVariables[i]) + " must be in ["))
          << tuning.error().message;
    }
    setenv(kVariables[i], "", 1);
    EXPECT_TRUE(scheduler_tuning_from_environment().ok()) << "empty is not set";
  }
}

TEST_F(SchedulerTuningTest, TheRatioBeginsAndEndsWhereTheVariablesSay) {
  make(with("SGLANG_INIT_NEW_TOKEN_RATIO", "0.5"));
  EXPECT_DOUBLE_EQ(scheduler_->new_token_ratio(), 0.5);
  with("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", "0.2");
  make(with("SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS", "10"));
  scheduler_->add(request("a", ids(5), 40));
  step();  // its prompt
  for (int i = 0; i < 5; ++i) step();
  EXPECT_NEAR(scheduler_->new_token_ratio(), 0.3, 1e-12) << "half of the way from 0.5 to 0.1";
  for (int i = 0; i < 10; ++i) step();
  EXPECT_DOUBLE_EQ(scheduler_->new_token_ratio(), 0.1);
}

TEST_F(SchedulerTuningTest, AfterARetractionTheRatioAllowsForTheStepsOfTheVariable) {
  double ratios[2];
  for (const bool more : {false, true}) {
    auto options = small();
    options.kv_slots = 101;
    options.conservativeness = 0.01;
    options.prefix_cache = false;
    options = with("SGLANG_RETRACT_DECODE_STEPS", more ? "11" : "1", options);
    make(options);
    // By the estimate, which counts on their ends.
    for (const char* rid : {"a", "b"}) {
      auto r = request(rid, ids(10, rid[0]), 60);
      r.sampling.ignore_eos = false;
      r.sampling.logit_bias = {{kEos, -100.0f}};
      scheduler_->add(r);
    }
    double& ratio = ratios[more ? 1 : 0];
    for (int i = 0; i < 100 && scheduler_->snapshot().retracted_total == 0; ++i) {
      auto plan = scheduler_->plan();
      scheduler_->launch(std::move(plan));
      ratio = scheduler_->new_token_ratio();  // the step itself lets it decay again
      ASSERT_TRUE(scheduler_->commit().ok());
    }
    ASSERT_EQ(scheduler_->snapshot().retracted_total, 1u);
    run_until_idle();
  }
  EXPECT_NEAR(ratios[1] - ratios[0], 10.0 / 61, 1e-9) << "for the one that stays, of its 60 tokens and one";
}

TEST_F(SchedulerTuningTest, AnAdmissionCountsOutputUpToTheClip) {
  auto options = small();
  options.chunked_prefill_size = 0;
  options.prefill_max_requests = 1;
  make(options);
  const auto add = [&] {
    for (const char* rid : {"a", "b", "c"}) scheduler_->add(request(rid, ids(20, rid[0]), 100));
  };
  add();
  step();
  EXPECT_EQ(scheduler_->plan().kind, StepPlan::Kind::kDecode) << "20 + 100 tokens, of 200 with 70 reserved";
  make(with("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "50", options));
  add();
  step();
  EXPECT_EQ(scheduler_->plan().kind, StepPlan::Kind::kPrefill) << "20 + 50, with 35 reserved";
}

TEST_F(SchedulerTuningTest, TwinsWaitByTheThresholds) {
  auto options = small();
  options.chunked_prefill_size = 0;
  options.policy = find_schedule_policy("lpm");
  const auto add = [&] {
    for (const char* rid : {"a", "b"}) {
      auto prompt = ids(10);
      prompt.insert(prompt.end(), 10, rid[0] - 'a');
      scheduler_->add(request(rid, prompt, 4));
    }
  };
  make(options);
  add();
  EXPECT_EQ(planned(), 2u) << "they share 10 tokens, not 32";
  make(with("IN_BATCH_PREFIX_CACHING_DEPRIORITIZE_THRESHOLD", "10", options));
  add();
  EXPECT_EQ(planned(), 1u) << "the second waits for the first";
  make(with("IN_BATCH_PREFIX_CACHING_CHECK_THRESHOLD", "-1", options));
  add();
  EXPECT_EQ(planned(), 2u) << "nobody waits";
}

}  // namespace
}  // namespace sluice::engine
