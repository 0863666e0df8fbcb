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

// What a step of a schedule takes on a machine where contexts cost something.
struct StepCost {
  double base = 0.010, sequence = 0.0005, context = 1e-6, overhead = 0.002, token = 0.0005, read = 1e-6;
  double alone(const StepShape& s) const {
    if (s.decoding == 0) return 0;
    return base + sequence * static_cast<double>(s.decoding) + context * static_cast<double>(s.context);
  }
  double all(const StepShape& s) const {
    if (s.prompt_tokens == 0) return alone(s);
    return alone(s) + overhead + token * static_cast<double>(s.prompt_tokens) +
           read * static_cast<double>(s.prompt_reads);
  }
};

// Several prompts in one step, cached prefixes, retractions, preemptions, aborts, wanted logprobs.
TEST_F(MixedTest, NoStepOfAnyLoadIsLongerThanTheGap) {
  uint64_t retracted = 0, cached = 0, preempted = 0;
  int64_t mixed = 0, several = 0, late = 0;
  double used = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const double noise = seed % 2 == 0 ? 0.08 : 0;
    auto options = roomy();
    options.kv_slots = 2201;
    options.conservativeness = 0.01;
    options.mixed_chunk = true;
    options.priorities = {.enabled = seed % 3 == 0, .preemption_threshold = 1};
    make(options);
    const StepCost cost;
    StepShape shape;
    runner_->on_forward = [&](const models::StepBatch&) {
      clock_.advance(from_seconds(cost.all(shape) * (1 + noise * (2 * rng.uniform() - 1))));
    };
    std::vector<std::string> rids;
    for (int i = 0; i < 1500; ++i) {
      for (uint64_t n = rng.below(80) == 0 ? 1 + rng.below(6) : 0; n > 0; --n) {
        rids.push_back(fmt::format("r{}-{}", i, n));
        const auto length = static_cast<int64_t>(rng.below(4) == 0 ? 1000 + rng.below(1000) : 2 + rng.below(100));
        auto r = request(rids.back(), ids(length, static_cast<int32_t>(rng.below(3))),
                         static_cast<int64_t>(1 + rng.below(300)));
        if (rng.below(8) == 0) r.logprob_start_len = 0;
        if (rng.below(2) == 0) r.priority = static_cast<int64_t>(rng.below(4));
        scheduler_->add(std::move(r));
      }
      if (rng.below(100) == 0 && !rids.empty()) scheduler_->abort({.rid = rids[rng.below(rids.size())]});
      if (!scheduler_->has_work()) continue;
      const StepPlan plan = scheduler_->plan();
      shape = scheduler_->shape_of(plan);
      int64_t prompts = 0;
      for (const auto& s : plan.sequences) prompts += s.request->phase != Request::Phase::kRunning;
      preempted += plan.preempt.size();
      const TimePoint before = clock_.now();
      ASSERT_TRUE(scheduler_->run(plan).ok());
      (void)scheduler_->take_outputs();
      if (plan.kind != StepPlan::Kind::kMixed) continue;
      ++mixed;
      several += prompts > 1;
      // One token, with its logits, is the least.
      if (shape.prompt_tokens <= 2) continue;
      const double gap = seconds(clock_.now() - before) / cost.alone(shape);
      EXPECT_LE(gap, noise == 0 ? 3 : 3 * 1.03);
      late += gap > 3;
      used += gap;
    }
    retracted += scheduler_->snapshot().retracted_total;
    cached += scheduler_->snapshot().cached_tokens_total;
    scheduler_->check_invariants();
  }
  EXPECT_LE(late, mixed / 1000);
  EXPECT_GT(used, 1.8 * static_cast<double>(mixed)) << "the gap is not used";
  // The load reached what it was meant to reach.
  EXPECT_GT(mixed, 3000);
  EXPECT_GT(several, 30);
  EXPECT_GT(retracted, 50u);
  EXPECT_GT(preempted, 5u);
  EXPECT_GT(cached, 1000u);
}

// L19: a long prompt beside steady decoding.
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
