// Steps that compute prompts and decode, pages, and prefixes of models that have states.
#include <gtest/gtest.h>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

using std::chrono::microseconds;

class MixedTest : public SchedulerTest {
 protected:
  // A machine on which a step of decoding requests alone takes 10 ms and 0.2 ms for each, and a prompt token 0.5 ms.
  void make_timed(SchedulerOptions options) {
    make(options);
    runner_->on_forward = [this](const models::StepBatch& b) {
      int64_t decoding = 0;
      for (size_t s = 0; s < b.seq_lens.size(); ++s) decoding += b.query_start[s + 1] - b.query_start[s] == 1;
      const auto prompt = static_cast<int64_t>(b.token_ids.size()) - decoding;
      clock_.advance(decode_time(decoding) + microseconds(500 * prompt));
    };
  }
  static Duration decode_time(int64_t decoding) {
    return decoding > 0 ? microseconds(10'000 + 200 * decoding) : Duration{0};
  }
  static SchedulerOptions roomy() {
    return {.kv_slots = 4001, .max_running_requests = 16, .chunked_prefill_size = 512, .context_length = 2500};
  }
};

// Title of L19 (users.md): a long prompt beside steady decoding.
TEST_F(MixedTest, L19APromptOfTwoThousandTokensHoldsUpDecodingByNoMoreThanTheGap) {
  for (const bool mixed : {false, true}) {
    auto options = roomy();
    options.mixed_chunk = mixed;
    make_timed(options);
    for (int i = 0; i < 4; ++i) scheduler_->add(request(fmt::format("r{}", i), ids(8, i), 300));
    for (int i = 0; i < 20; ++i) step();
    ASSERT_EQ(scheduler_->snapshot().num_running_reqs, 4);
    const auto prompt = request("long", ids(2000, 3), 5);
    scheduler_->add(prompt);
    Duration longest{0}, gap{0};
    const TimePoint start = clock_.now();
    while (answers_["long"].ids.empty()) {
      const size_t had = answers_["r0"].ids.size();
      const TimePoint before = clock_.now();
      step();
      gap += clock_.now() - before;
      longest = std::max(longest, gap);
      if (answers_["r0"].ids.size() > had) gap = Duration{0};
    }
    if (mixed) {
      EXPECT_LE(longest, 3 * decode_time(4));
      EXPECT_GE(longest, 2 * decode_time(4)) << "the gap is not used";
      // Two of three parts of the time are the prompt's: 1 s takes 1.5 s, and the margin.
      EXPECT_LT(clock_.now() - start, std::chrono::seconds(2));
    } else {
      EXPECT_GT(longest, 20 * decode_time(4)) << "prefill goes before decode";
    }
    run_until_idle();
    EXPECT_EQ(answers_["long"].ids, alone(prompt, scheduler_->max_req_len()).ids);
  }
}

// Title of J3 (users.md): of groups that step together, one computes a long prompt beside the other's decoding.
TEST_F(MixedTest, J3APromptHoldsUpDecodingOfAnotherGroupByNoMoreThanTheGap) {
  auto options = roomy();
  options.mixed_chunk = options.joint_steps = true;
  make(options);
  int64_t prompt_tokens = 0;
  runner_->on_forward = [&](const models::StepBatch& b) { prompt_tokens = std::ssize(b.token_ids); };
  const auto prompt = request("long", ids(2000, 3), 1);
  scheduler_->add(prompt);
  Duration longest{0};
  int steps = 0;
  for (; answers_["long"].ids.empty(); ++steps) {
    ASSERT_LT(steps, 200);
    // Four sequences decode elsewhere; a step lasts as long as its longest part.
    scheduler_->others_decode(4);
    prompt_tokens = 0;
    // It may wait for a step of the others alone.
    if (scheduler_->plan().kind != StepPlan::Kind::kIdle) step();
    const Duration took = decode_time(4) + microseconds(500 * prompt_tokens);
    scheduler_->step_took(4, prompt_tokens, took);
    longest = std::max(longest, took);
  }
  EXPECT_LE(longest, 3 * decode_time(4));
  EXPECT_GE(longest, 2 * decode_time(4)) << "the gap is not used";

  // Alone it takes whole chunks.
  scheduler_->others_decode(0);
  scheduler_->add(request("alone", ids(1000, 9), 1));
  step();
  EXPECT_EQ(prompt_tokens, options.chunked_prefill_size);
}

TEST_F(MixedTest, TheGapIsAnOption) {
  std::map<double, int64_t> largest;
  for (const double gap : {1.5, 3.0}) {
    auto options = roomy();
    options.mixed_chunk = true;
    options.mixed_chunk_gap = gap;
    make_timed(options);
    scheduler_->add(request("short", ids(8), 400));
    for (int i = 0; i < 5; ++i) step();
    scheduler_->add(request("long", ids(1000, 3), 5));
    runner_->largest_step = 0;
    while (answers_["long"].ids.empty()) step();
    largest[gap] = runner_->largest_step;
  }
  EXPECT_NEAR(static_cast<double>(largest[3.0]) / static_cast<double>(largest[1.5]), 4.0, 0.7);
}

TEST_F(MixedTest, CachedTokensAreWholePages) {
  auto options = roomy();
  options.page_size = 16;
  options.kv_slots = 4016;
  make(options);
  scheduler_->add(request("a", ids(40), 5));
  run_until_idle();
  const auto twin = request("b", ids(40), 5);
  scheduler_->add(twin);
  run_until_idle();
  EXPECT_EQ(answers_["b"].cached_tokens, 32);
  EXPECT_EQ(answers_["b"].ids, alone(twin, scheduler_->max_req_len()).ids);
  auto other = request("c", ids(40), 5);
  other.extra_key = "tenant";
  scheduler_->add(other);
  run_until_idle();
  EXPECT_EQ(answers_["c"].cached_tokens, 0);
  EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 0);
}

// One page of 16 serves the next tokens: a request needs a new one only at a border.
TEST_F(MixedTest, DecodingTakesAPageOnlyAtItsBorder) {
  auto options = roomy();
  options.page_size = 16;
  options.kv_slots = 4016;
  make(options);
  scheduler_->add(request("a", ids(20), 20));
  step();
  EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 32);
  while (answers_["a"].ids.size() < 13) step();
  EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 32) << "32 tokens are computed";
  step();
  EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 48);
  run_until_idle();
}

class HybridTest : public SchedulerTest {
 protected:
  void make_hybrid(int32_t rows = 8) {
    auto options = small();
    options.radix.state_rows = rows;
    make(options);
  }
};

TEST_F(HybridTest, ASecondTurnGoesOnFromTheStateAtTheEndOfTheFirst) {
  make_hybrid();
  scheduler_->add(request("a", ids(40), 5));
  run_until_idle();
  auto turn = ids(40);
  turn.insert(turn.end(), answers_["a"].ids.begin(), answers_["a"].ids.end());
  turn.push_back(7);
  const auto second = request("b", turn, 6);
  scheduler_->add(second);
  run_until_idle();
  EXPECT_EQ(answers_["b"].cached_tokens, 44);
  EXPECT_EQ(answers_["b"].ids, alone(second, scheduler_->max_req_len()).ids);
}

TEST_F(HybridTest, PromptsShareWhatEndsWithAChunk) {
  make_hybrid();
  scheduler_->add(request("a", ids(40), 5));
  run_until_idle();
  auto other = ids(40);
  other[35] = 0;
  const auto r = request("b", other, 6);
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["b"].cached_tokens, 32) << "two chunks of 16";
  EXPECT_EQ(answers_["b"].ids, alone(r, scheduler_->max_req_len()).ids);
}

TEST_F(HybridTest, OneRowStillGivesRightAnswers) {
  make_hybrid(/*rows=*/1);
  for (int i = 0; i < 12; ++i) {
    const auto r = request(fmt::format("r{}", i), ids(40 + i, i % 2), 6);
    scheduler_->add(r);
    if (i % 3 == 2) run_until_idle();
    scheduler_->check_invariants();
  }
  run_until_idle();
  for (int i = 0; i < 12; ++i) {
    const auto r = request(fmt::format("r{}", i), ids(40 + i, i % 2), 6);
    EXPECT_EQ(answers_[r.rid].ids, alone(r, scheduler_->max_req_len()).ids);
  }
}

}  // namespace
}  // namespace sluice::engine
