// Pauses, time limits, grammars and stops of the scheduler.
#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

using namespace std::chrono_literals;

class SchedulerPauseTest : public SchedulerTest, public ::testing::WithParamInterface<Steps> {};

INSTANTIATE_TEST_SUITE_P(Steps, SchedulerPauseTest, ::testing::Values(Steps::kInline, Steps::kPuppet, Steps::kThread),
                         name_of);

TEST_P(SchedulerPauseTest, APauseInAnyModeLeavesNothingBehind) {
  for (const auto how : {Scheduler::Pause::kRetract, Scheduler::Pause::kInPlace}) {
    make(small(), GetParam());
    const auto a = request("a", ids(40), 12), b = request("b", ids(9, 5), 30);
    scheduler_->add(a);
    scheduler_->add(b);
    for (int i = 0; i < 6; ++i) step();
    scheduler_->pause(how);
    scheduler_->check_invariants();
    EXPECT_FALSE(scheduler_->has_work());
    const int64_t computed = runner_->computed;
    step();
    EXPECT_EQ(runner_->computed, computed) << "a paused scheduler computes nothing";
    // Only where nothing holds KV can the cache be emptied.
    EXPECT_EQ(scheduler_->flush_cache().ok(), how == Scheduler::Pause::kRetract);
    EXPECT_EQ(scheduler_->snapshot().num_paused_reqs, 2);
    scheduler_->go_on();
    run_until_idle();
    EXPECT_EQ(answers_["a"].ids, alone(a, scheduler_->max_req_len()).ids);
    EXPECT_EQ(answers_["b"].ids, alone(b, scheduler_->max_req_len()).ids);
  }
}

TEST_P(SchedulerPauseTest, APauseInTheMiddleOfAPromptGoesOnToo) {
  make(small(), GetParam());
  const auto a = request("a", ids(60), 5);
  scheduler_->add(a);
  step();  // a first chunk
  scheduler_->pause(Scheduler::Pause::kRetract);
  EXPECT_TRUE(scheduler_->nothing_runs());
  scheduler_->check_invariants();
  scheduler_->go_on();
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, alone(a, scheduler_->max_req_len()).ids);
}

TEST_P(SchedulerPauseTest, APauseThatAbortsEndsEverything) {
  make(small(), GetParam());
  scheduler_->add(request("a", ids(40), 50));
  scheduler_->add(request("b", ids(30, 3), 50));
  for (int i = 0; i < 4; ++i) step();
  scheduler_->pause(Scheduler::Pause::kAbort);
  collect();
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kAbort);
  EXPECT_EQ(answers_["b"].finish.kind, FinishKind::kAbort);
  EXPECT_TRUE(scheduler_->idle());
  scheduler_->check_invariants();
}

TEST_P(SchedulerPauseTest, WhatWaitsOrRunsForTooLongIs503) {
  auto options = small();
  options.max_running_requests = 1;
  options.waiting_timeout = 2s;
  options.running_timeout = 5s;
  make(options, GetParam());
  scheduler_->add(request("runs", ids(10), 100));
  step();
  scheduler_->add(request("waits", ids(10, 7), 5));
  clock_.advance(3s);
  step();
  EXPECT_EQ(answers_["waits"].finish.status_code, 503);
  EXPECT_NE(answers_["waits"].finish.message.find("waiting timeout"), std::string::npos);
  EXPECT_EQ(answers_["runs"].finished, 0);
  clock_.advance(3s);
  step();
  EXPECT_EQ(answers_["runs"].finish.status_code, 503);
  EXPECT_NE(answers_["runs"].finish.message.find("running timeout"), std::string::npos);
  run_until_idle();
}

// A rank sleeps in a pause.
TEST_P(SchedulerPauseTest, WhatAPauseHoldsIsDueWhenItHasWaitedForTooLong) {
  auto options = small();
  options.waiting_timeout = 2s;
  make(options, GetParam());
  scheduler_->pause(Scheduler::Pause::kRetract);
  const TimePoint begun = clock_.now();
  scheduler_->add(request("waits", ids(10), 5));
  for (int looks = 0; answers_["waits"].finished == 0; ++looks) {
    ASSERT_LT(looks, 3);
    scheduler_->snapshot();
    const auto due = scheduler_->next_due();
    ASSERT_TRUE(due);
    ASSERT_GT(*due, clock_.now());
    clock_.advance(*due - clock_.now());
    scheduler_->expire();
    collect();
  }
  EXPECT_EQ(answers_["waits"].finish.status_code, 503);
  EXPECT_EQ(clock_.now(), begun + 2s + Duration{1});
}

TEST_P(SchedulerPauseTest, ARegularExpressionEndsAnAnswer) {
  make(small(), GetParam());
  auto r = request("a", ids(12), 60);
  const auto whole = alone(r, scheduler_->max_req_len());
  std::string text;
  for (const int32_t id : whole.ids) text += token_bytes(id);
  // A pattern that the seventh token completes.
  size_t bytes = 0;
  for (int i = 0; i < 7; ++i) bytes += token_bytes(whole.ids[static_cast<size_t>(i)]).size();
  r.sampling.stop_regex = {"^" + text.substr(0, bytes - 1) + "[a-z]"};
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kStopString);
  EXPECT_EQ(answers_["a"].finish.matched_string, r.sampling.stop_regex[0]);
  EXPECT_EQ(answers_["a"].ids.size(), 7u);

  r.rid = "b";
  r.sampling.stop_regex = {"("};
  scheduler_->add(r);
  collect();
  EXPECT_EQ(answers_["b"].finish.status_code, 400);
}

// Allows one token only, and then the end, for which there may be no token.
class OneTokenGrammar final : public Grammar {
 public:
  explicit OneTokenGrammar(int32_t token, int tokens = 2) : token_(token), tokens_(tokens) {}
  std::unique_ptr<GrammarState> start() const override { return std::make_unique<State>(token_, tokens_); }
  size_t bytes() const override { return 1; }

 private:
  class State final : public GrammarState {
   public:
    State(int32_t token, int tokens) : token_(token), tokens_(tokens) {}
    bool allowed(std::span<uint32_t> mask) override {
      const int32_t next = taken_ == 0 ? token_ : kEos;
      mask[static_cast<size_t>(next) / 32] |= uint32_t{1} << (next % 32);
      return true;
    }
    bool accept(int32_t token) override { return token == (taken_++ == 0 ? token_ : kEos); }
    bool finished() const override { return taken_ == tokens_; }

   private:
    const int32_t token_;
    const int tokens_;
    int taken_ = 0;
  };
  const int32_t token_;
  const int tokens_;
};

TEST_P(SchedulerPauseTest, AGrammarMayEndWhatMustNotEndOtherwise) {
  make(small(), GetParam());
  auto r = request("a", ids(12), 20);
  r.sampling.min_new_tokens = 10;
  r.sampling.ignore_eos = true;
  scheduler_->add(r, std::make_shared<OneTokenGrammar>(33));
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, (std::vector<int32_t>{33, kEos}));
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kStopToken);
}

TEST_P(SchedulerPauseTest, WhereAGrammarEndsWithoutATokenTheLastOneIsText) {
  make(small(), GetParam());
  scheduler_->add(request("a", ids(12), 20), std::make_shared<OneTokenGrammar>(33, /*tokens=*/1));
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, std::vector<int32_t>{33});
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kStopToken);
  EXPECT_EQ(answers_["a"].finish.matched_token, -1);
}

TEST_P(SchedulerPauseTest, AGrammarCanBeginAfterAToken) {
  make(small(), GetParam());
  auto r = request("a", ids(12), 20);
  const auto whole = alone(r, scheduler_->max_req_len()).ids;
  const auto mark = std::find_if(whole.begin() + 2, whole.end(),
                                 [&](int32_t id) { return std::count(whole.begin(), whole.begin() + 2, id) == 0; });
  ASSERT_NE(mark, whole.end());
  r.sampling.grammar_after = *mark;
  scheduler_->add(r, std::make_shared<OneTokenGrammar>(33));
  run_until_idle();
  std::vector<int32_t> want(whole.begin(), std::find(whole.begin(), whole.end(), *mark) + 1);
  want.insert(want.end(), {33, kEos});
  EXPECT_EQ(answers_["a"].ids, want);
}

TEST_P(SchedulerPauseTest, AGrammarOutlivesARetraction) {
  make(small(), GetParam());
  auto r = request("a", ids(12), 20);
  scheduler_->add(r, std::make_shared<OneTokenGrammar>(33));
  step();
  scheduler_->pause(Scheduler::Pause::kRetract);
  scheduler_->go_on();
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, (std::vector<int32_t>{33, kEos}));
}

}  // namespace
}  // namespace sluice::engine
