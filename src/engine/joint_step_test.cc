// Groups that step together, each with a scheduler of its own, on a machine whose steps last as long as the longest
// part of them.
#include "engine/joint_step.h"

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

constexpr double kGap = 3;

// Each group computes its own attention, and all share the experts: those cost by the tokens of all.
struct JointMachine {
  double base = 0.010, sequence = 0.0004, context = 5e-7;
  double overhead = 0.002, token = 0.0003, expert = 0.0001, read = 5e-7;

  double alone(const StepShape& s) const {
    if (s.decoding == 0) return 0;
    return base + sequence * static_cast<double>(s.decoding) + expert * static_cast<double>(s.all_decoding) +
           context * static_cast<double>(s.context);
  }
  double all(const StepShape& s) const {
    if (s.prompt_tokens == 0) return alone(s);
    return alone(s) + overhead + token * static_cast<double>(s.prompt_tokens) +
           expert * static_cast<double>(s.all_prompt_tokens) + read * static_cast<double>(s.prompt_reads);
  }
};

class JointStepTest : public ::testing::Test {
 protected:
  void make(int64_t groups, bool budget) {
    layout_ = {.tp_size = groups, .dp_size = groups};
    last_ = {};
    last_.hash = parallel::first_hash(layout_);
    last_.decoding.resize(static_cast<size_t>(groups));
    ranks_.clear();
    const SchedulerOptions options{.kv_slots = 6001,
                                   .max_running_requests = 16,
                                   .chunked_prefill_size = 512,
                                   .context_length = 3000,
                                   .prefix_cache = true,
                                   .mixed_chunk = budget,
                                   .mixed_chunk_gap = kGap,
                                   .joint_steps = true};
    for (int64_t i = 0; i < groups; ++i) {
      Rank& rank = ranks_.emplace_back();
      rank.runner =
          std::make_unique<FakeRunner>(options.kv_slots, options.max_running_requests, options.context_length);
      rank.scheduler = std::make_unique<Scheduler>(options, *rank.runner, token_bytes, clock_);
    }
  }
  Scheduler& scheduler(size_t group) { return *ranks_[group].scheduler; }

  // One step of all, as rank_loop does it. False: nobody had anything.
  bool step() {
    std::vector<parallel::StepRow> rows(ranks_.size());
    std::vector<StepPlan> plans(ranks_.size());
    ++seq_;
    shape_ = {};
    bool waits = false;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      Scheduler& s = *ranks_[i].scheduler;
      s.others(others_of(last_, static_cast<int64_t>(i)));
      if (s.has_work()) plans[i] = s.plan();
      const StepPlan& plan = plans[i];
      parallel::StepRow& row = rows[i];
      row.seq = seq_;
      row.plan_hash = last_.hash;
      for (const auto& sequence : plan.sequences) row.num_tokens += sequence.new_tokens;
      row.prefill = plan.has_prompt() || plan.prompts_wait_at ? parallel::kCanPrefill : 0;
      tell(s.outlook(plan), row);
      waits |= s.has_work();
      const StepShape own = s.shape_of(plan);
      shape_.decoding = std::max(shape_.decoding, own.decoding);
      shape_.all_decoding += own.decoding;
      shape_.context = std::max(shape_.context, own.context);
      shape_.prompt_tokens = std::max(shape_.prompt_tokens, own.prompt_tokens);
      shape_.all_prompt_tokens += own.prompt_tokens;
      shape_.prompt_reads = std::max(shape_.prompt_reads, own.prompt_reads);
      with_prompts_ = (i == 0 ? 0 : with_prompts_) + (own.prompt_tokens > 0);
    }
    auto now = parallel::derive_plan(rows, layout_);
    EXPECT_TRUE(now.ok()) << now.error().message;
    const StepShape told = shape_of(last_, *now);
    last_ = *now;
    if (!last_.run) return waits;
    took_ = machine_.all(shape_) * (1 + noise_ * (2 * rng_.uniform() - 1));
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (plans[i].kind != StepPlan::Kind::kIdle) {
        EXPECT_TRUE(ranks_[i].scheduler->run(plans[i]).ok());
      }
      for (const auto& out : ranks_[i].scheduler->take_outputs()) {
        ended_ += out.finish.kind != FinishKind::kNone;
        output_[out.rid] += std::ssize(out.new_ids);
      }
      ranks_[i].scheduler->step_took(told, from_seconds(took_));
    }
    clock_.advance(from_seconds(took_));
    return true;
  }
  // Times what decoding alone takes; 0 where nobody decodes, or every group has the one token that it may always have.
  double gap() const { return shape_.decoding == 0 || shape_.prompt_tokens <= 1 ? 0 : took_ / machine_.alone(shape_); }
  static GenerateRequest request(std::string rid, int64_t length, int64_t max_new, int32_t first = 1) {
    GenerateRequest r{.rid = std::move(rid)};
    for (int64_t i = 0; i < length; ++i) r.input_ids.push_back(static_cast<int32_t>((first + i) % kVocab));
    r.sampling.max_new_tokens = max_new;
    r.sampling.temperature = 0;
    r.sampling.ignore_eos = true;
    return r;
  }

  struct Rank {
    std::unique_ptr<FakeRunner> runner;
    std::unique_ptr<Scheduler> scheduler;
  };
  parallel::Layout layout_;
  testing::FakeClock clock_;
  std::vector<Rank> ranks_;
  parallel::StepPlan last_;
  JointMachine machine_;
  Rng rng_{1};
  double noise_ = 0;
  int64_t seq_ = 0;
  StepShape shape_;  // of the last step
  int64_t with_prompts_ = 0;
  double took_ = 0;
  int64_t ended_ = 0;
  std::map<std::string, int64_t> output_;
};

// J3: of groups that step together, one computes a long prompt beside the other's decoding.
TEST_F(JointStepTest, J3APromptHoldsUpDecodingOfAnotherGroupByNoMoreThanTheGap) {
  for (const bool budget : {false, true}) {
    make(2, budget);
    for (int i = 0; i < 4; ++i) scheduler(0).add(request(fmt::format("d{}", i), 8, 400, i));
    for (int i = 0; i < 10; ++i) ASSERT_TRUE(step());
    scheduler(1).add(request("long", 2000, 1));
    double longest = 0;
    const TimePoint begun = clock_.now();
    for (int steps = 0; output_["long"] == 0; ++steps) {
      ASSERT_LT(steps, 300);
      ASSERT_TRUE(step());
      longest = std::max(longest, gap());
    }
    if (budget) {
      EXPECT_LE(longest, kGap);
      EXPECT_GE(longest, 0.75 * kGap) << "the gap is not used";
      // With two thirds of each step for the prompt it would be 2.9 s.
      EXPECT_LT(clock_.now() - begun, std::chrono::seconds(4));
    } else {
      EXPECT_GT(longest, 5 * kGap);
    }
    output_.clear();
  }
}

// Nobody knows what the others have until it is told: of a prompt that comes when all other groups compute one at the
// full gap, of groups that all begin at once, of positions that differ.
TEST_F(JointStepTest, NoStepOfAnyLoadOfAllGroupsIsLongerThanTheGap) {
  int64_t several = 0, late = 0, mixed = 0;
  double used = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    rng_ = Rng(seed);
    noise_ = seed % 2 == 0 ? 0.05 : 0;
    make(2 + static_cast<int64_t>(rng_.below(3)), /*budget=*/true);
    machine_.token = 0.0002 + 0.0004 * rng_.uniform();
    machine_.expert = 0.0004 * rng_.uniform();
    machine_.read = 1e-6 * rng_.uniform();
    int64_t added = 0;
    ended_ = 0;
    for (int i = 0; i < 1200; ++i) {
      while (rng_.below(25) == 0) {
        const auto length = static_cast<int64_t>(rng_.below(3) == 0 ? 500 + rng_.below(2000) : 2 + rng_.below(100));
        scheduler(rng_.below(ranks_.size()))
            .add(request(fmt::format("r{}", added++), length, static_cast<int64_t>(1 + rng_.below(200)),
                         static_cast<int32_t>(rng_.below(5))));
      }
      step();
      if (gap() == 0) continue;
      ++mixed;
      several += with_prompts_ > 1;
      EXPECT_LE(gap(), noise_ == 0 ? kGap : 1.03 * kGap) << "step " << i;
      late += gap() > kGap;
      used += gap();
    }
    // Everybody gets to the end, and nobody waits for a group that has nothing.
    for (int i = 0; i < 20'000 && ended_ < added; ++i) step();
    EXPECT_EQ(ended_, added);
  }
  EXPECT_GT(mixed, 2000);
  EXPECT_GT(several, 300);
  EXPECT_LE(late, mixed / 500);
  EXPECT_GT(used, 1.7 * static_cast<double>(mixed)) << "the gap is not used";
}

TEST_F(JointStepTest, AloneAPromptTakesWholeChunks) {
  make(2, /*budget=*/true);
  scheduler(1).add(request("alone", 1000, 1));
  ASSERT_TRUE(step());
  EXPECT_EQ(shape_.prompt_tokens, 512);
}

TEST(JointStepRowTest, TellsWhatOthersDo) {
  parallel::StepPlan last;
  last.decoding = {3, 0, 5};
  last.context = {300, 0, 70};
  last.prefill = {parallel::kCanPrefill, parallel::kCanPrefill | parallel::kForcePrefill, 0};
  last.position = {10, 4000, 9};
  const OtherGroups others = others_of(last, 1);
  EXPECT_EQ(others.decoding, 5);
  EXPECT_EQ(others.all_decoding, 8);
  EXPECT_EQ(others.context, 300);
  EXPECT_EQ(others.with_prompts, 1);
  EXPECT_TRUE(others.expect_prompts);
  EXPECT_EQ(others.position, 4000);
  EXPECT_FALSE(others_of(last, 2).expect_prompts);
  EXPECT_EQ(others_of(last, 2).with_prompts, 2);

  parallel::StepPlan step;
  step.group_tokens = {2, 40, 25};
  step.prompt_logits = {0, 0, 20};
  step.prompt_reads = {0, 900, 100};
  const StepShape shape = shape_of(last, step);
  EXPECT_EQ(shape.decoding, 5);
  EXPECT_EQ(shape.all_decoding, 7) << "one has ended";
  EXPECT_EQ(shape.context, 200);
  EXPECT_EQ(shape.prompt_tokens, 40);
  EXPECT_EQ(shape.all_prompt_tokens, 80);
  EXPECT_EQ(shape.prompt_reads, 900);
}

}  // namespace
}  // namespace sluice::engine
