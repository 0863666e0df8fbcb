// Steps that are planned and launched while the one before them is computed.
#include <algorithm>

#include "engine/scheduler_fixture.h"

namespace sluice::engine {
namespace {

using namespace std::chrono_literals;

// Allows the tokens that are congruent to the number of those before, modulo three, and ends after `length` of them.
class CountingGrammar final : public Grammar {
 public:
  explicit CountingGrammar(int length) : length_(length) {}
  std::unique_ptr<GrammarState> start() const override { return std::make_unique<State>(length_); }
  size_t bytes() const override { return 1; }

 private:
  class State final : public GrammarState {
   public:
    explicit State(int length) : length_(length) {}
    bool allowed(std::span<uint32_t> mask) override {
      EXPECT_LT(taken_, length_) << "asked beyond its end";
      for (int32_t token = 0; token < kVocab; ++token) {
        if (token % 3 == taken_ % 3) mask[static_cast<size_t>(token) / 32] |= uint32_t{1} << (token % 32);
      }
      return true;
    }
    bool accept(int32_t token) override { return token % 3 == taken_++ % 3; }
    bool finished() const override { return taken_ == length_; }

   private:
    const int length_;
    int taken_ = 0;
  };
  const int length_;
};

class SchedulerOverlapTest : public SchedulerTest {
 protected:
  // Everything that a request can ask for, of tokens that depend on all before them.
  std::vector<GenerateRequest> one_of_each() {
    std::vector<GenerateRequest> all;
    const auto add = [&](const char* rid, int64_t length, auto change) {
      auto r = request(rid, ids(length, static_cast<int32_t>(3 * all.size())), 12);
      change(r);
      all.push_back(r);
    };
    add("plain", 5, [](auto&) {});
    add("sampled", 21, [](auto& r) { r.sampling.temperature = 1, r.sampling.seed = 5, r.sampling.top_p = 0.8; });
    add("penalties", 9, [](auto& r) {
      r.sampling.frequency_penalty = 2, r.sampling.presence_penalty = 1, r.sampling.repetition_penalty = 1.5;
    });
    add("bias", 8, [](auto& r) { r.sampling.logit_bias = {{7, 3.0f}}; });
    add("least", 6, [](auto& r) { r.sampling.ignore_eos = false, r.sampling.min_new_tokens = 6; });
    add("stops", 7, [](auto& r) { r.sampling.stop = {"ab", "ca"}; });
    add("logprobs", 33, [](auto& r) { r.return_logprob = true, r.logprob_start_len = 0, r.top_logprobs_num = 3; });
    add("hidden", 18, [](auto& r) { r.return_hidden_states = true; });
    add("experts", 18, [](auto& r) { r.return_routed_experts = true; });
    add("prefill only", 18, [](auto& r) { r.sampling.max_new_tokens = 0; });
    add("one token", 18, [](auto& r) { r.sampling.max_new_tokens = 1; });
    add("embedding", 18, [](auto& r) { r.embed = true, r.sampling.max_new_tokens = 0; });
    add("rows", 6, [](auto& r) {
      r.input_ids = std::vector<int32_t>(6, -1);
      for (int i = 0; i < 12; ++i) r.input_embeds.push_back(static_cast<float>(i));
    });
    add("held", 11, [](auto& r) { r.sampling.grammar_kind = GrammarKind::kRegex; });
    return all;
  }
  void serve(const std::vector<GenerateRequest>& requests, const SchedulerOptions& options, Steps steps,
             uint64_t seed) {
    make(options, steps, seed);
    size_t next = 0;
    for (int i = 0; next < requests.size() || !scheduler_->idle(); ++i) {
      ASSERT_LT(i, 10'000);
      if (next < requests.size() && i % 2 == 0) {
        const auto& r = requests[next++];
        const bool held = r.sampling.grammar_kind != GrammarKind::kNone;
        scheduler_->add(r, held ? std::make_shared<CountingGrammar>(7) : nullptr);
      }
      step();
      scheduler_->check_invariants();
    }
  }
  PuppetDevice& puppet() { return static_cast<PuppetDevice&>(*device_); }
  // Steps until a step is in flight in which the request decodes.
  void step_until_decoding(const std::string& rid) {
    for (int i = 0; i < 100 && answers_[rid].messages == 0; ++i) step();
    while (scheduler_->in_flight() == 0) step();
    ASSERT_EQ(answers_[rid].finished, 0);
  }
};

TEST_F(SchedulerOverlapTest, EveryAnswerIsThatOfStepsOneAfterAnother) {
  for (const bool mixed : {false, true}) {
    for (const int64_t chunk : {0, 8}) {
      auto options = small();
      options.kv_slots = 801;
      options.max_running_requests = 20;
      options.chunked_prefill_size = chunk;
      options.mixed_chunk = mixed;
      options.keep_routed_experts = true;
      options.seed = 3;
      const auto requests = one_of_each();
      serve(requests, options, Steps::kInline, 1);
      const auto want = answers_;
      for (uint64_t seed = 1; seed <= 20; ++seed) {
        SCOPED_TRACE(fmt::format("mixed {}, chunks of {}, seed {}", mixed, chunk, seed));
        serve(requests, options, seed % 4 == 0 ? Steps::kThread : Steps::kPuppet, seed);
        if (seed % 4 != 0) {
          EXPECT_EQ(puppet().most_open, 2u);
        }
        ASSERT_EQ(answers_.size(), want.size());
        for (const auto& [rid, answer] : want) {
          SCOPED_TRACE(rid);
          const SchedulerAnswer& got = answers_[rid];
          EXPECT_EQ(got.ids, answer.ids);
          EXPECT_EQ(got.finish.kind, answer.finish.kind);
          EXPECT_EQ(got.finish.matched_string, answer.finish.matched_string);
          EXPECT_EQ(got.hidden_states, answer.hidden_states);
          EXPECT_EQ(got.routed_experts, answer.routed_experts);
          EXPECT_EQ(got.embedding, answer.embedding);
          expect_equal(got.input_logprobs, answer.input_logprobs);
          expect_equal(got.output_logprobs, answer.output_logprobs);
        }
      }
      EXPECT_EQ(want.at("held").ids.size(), 7u) << "the grammar says when it is over";
      EXPECT_FALSE(want.at("embedding").embedding.empty());
    }
  }
}

// A device that computes in no time of ours, but takes some of its own. It keeps what it waited for between two steps.
class TimedDevice final : public StepDevice {
 public:
  TimedDevice(testing::FakeClock& clock, int depth, Duration takes) : clock_(clock), depth_(depth), takes_(takes) {}
  int depth() const override { return depth_; }
  void submit(Step step) override {
    const TimePoint begin = std::max(free_, clock_.now());
    if (steps++ > 0) idle += begin - free_;
    free_ = begin + takes_;
    ends_.push_back(free_);
    EXPECT_TRUE(step().ok());
  }
  Result<void> wait() override {
    if (ends_.front() > clock_.now()) clock_.advance(ends_.front() - clock_.now());
    ends_.pop_front();
    return {};
  }
  int64_t steps = 0;
  Duration idle{};

 private:
  testing::FakeClock& clock_;
  const int depth_;
  const Duration takes_;
  TimePoint free_{};
  std::deque<TimePoint> ends_;
};

// The issue's own measure: between two steps the device waits as long as the scheduler takes without overlap, and not
// at all with it, as long as a step takes longer than that.
TEST_F(SchedulerOverlapTest, TheDeviceWaitsForTheSchedulerOnlyWithoutOverlap) {
  const auto idle_per_step = [&](int depth, Duration step_takes, Duration scheduling_takes) {
    TimedDevice device(clock_, depth, step_takes);
    auto options = small();
    runner_ = std::make_unique<FakeRunner>(options.kv_slots, options.max_running_requests, options.context_length);
    Scheduler scheduler(
        options, *runner_,
        [&](int32_t) {  // looking for a stop string is what it does for each token here
          clock_.advance(scheduling_takes);
          return std::string_view("x");
        },
        clock_, &device);
    auto r = request("a", ids(5), 101);
    r.sampling.stop = {"y"};
    scheduler.add(r);
    while (!scheduler.idle()) EXPECT_TRUE(scheduler.step().ok());
    EXPECT_EQ(device.steps, 101);
    return device.idle / 100;
  };
  EXPECT_EQ(idle_per_step(1, 20ms, 2ms), 2ms);
  EXPECT_EQ(idle_per_step(2, 20ms, 2ms), 0ms);
  // A scheduler that takes longer than the step is waited for by what it takes longer.
  EXPECT_EQ(idle_per_step(1, 2ms, 20ms), 20ms);
  EXPECT_NEAR(seconds(idle_per_step(2, 2ms, 20ms)), seconds(18ms), seconds(1ms));
}

TEST_F(SchedulerOverlapTest, WhoIsAbortedInAStepHasItsAnswerAtOnceAndItsSlotsUntilTheStepIsCommitted) {
  make(small(), Steps::kPuppet);
  scheduler_->add(request("a", ids(8), 40));
  scheduler_->add(request("b", ids(8, 7), 40));
  step_until_decoding("a");
  const size_t had = answers_["a"].ids.size();
  scheduler_->abort({.rid = "a"});
  collect();
  EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kAbort);
  EXPECT_EQ(answers_["a"].ids.size(), had) << "what the step in flight chooses is nobody's";
  scheduler_->check_invariants();
  EXPECT_GE(scheduler_->snapshot().num_used_tokens, 8 + 8 + 2);
  EXPECT_EQ(scheduler_->snapshot().num_running_reqs, 1);
  // Its name is free.
  answers_.erase("a");
  const auto again = request("a", ids(10, 3), 5);
  scheduler_->add(again);
  scheduler_->check_invariants();
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, alone(again, scheduler_->max_req_len()).ids);
  EXPECT_EQ(answers_["b"].ids, alone(request("b", ids(8, 7), 40), scheduler_->max_req_len()).ids);
  EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 0);
}

TEST_F(SchedulerOverlapTest, WhoStopsIsComputedOnceMoreAndNotLonger) {
  make(small(), Steps::kPuppet);
  auto r = request("a", ids(10), 40);
  const auto all = alone(r, scheduler_->max_req_len()).ids;
  r.sampling.ignore_eos = false;
  r.sampling.stop_token_ids = {all[6]};
  const auto want = alone(r, scheduler_->max_req_len()).ids;
  scheduler_->add(r);
  run_until_idle();
  EXPECT_EQ(answers_["a"].ids, want);
  // The prompt, each token but the last, and the last in vain.
  EXPECT_EQ(runner_->computed, 10 + static_cast<int64_t>(want.size()));
  // Whose length is what ends it is known to end.
  const int64_t before = runner_->computed;
  scheduler_->add(request("b", ids(10, 7), 8));
  run_until_idle();
  EXPECT_EQ(runner_->computed - before, 10 + 7);
}

// With no policy that makes the second wait, both compute the prompt, and the cache has one of them.
TEST_F(SchedulerOverlapTest, TwinsInOneStepKeepWhatTheStepsInFlightRead) {
  for (const int64_t page : {1, 4}) {
    auto options = small();
    options.page_size = page;
    options.chunked_prefill_size = 0;
    make(options, Steps::kPuppet);
    const auto a = request("a", ids(22), 20), b = request("b", ids(22), 12);
    scheduler_->add(a);
    scheduler_->add(b);
    bool doubled = false;
    while (!scheduler_->idle()) {
      step();
      scheduler_->check_invariants();
      const auto load = scheduler_->snapshot();
      doubled |= load.num_running_reqs == 2 && load.num_used_tokens >= 44;
    }
    EXPECT_TRUE(doubled);
    EXPECT_EQ(answers_["a"].ids, alone(a, scheduler_->max_req_len()).ids);
    EXPECT_EQ(answers_["b"].ids, alone(b, scheduler_->max_req_len()).ids);
    EXPECT_EQ(scheduler_->snapshot().num_used_tokens, 0);
  }
}

TEST_F(SchedulerOverlapTest, WhoComesWhileAPromptIsComputedFindsItInTheCache) {
  make(small(), Steps::kPuppet);
  scheduler_->add(request("a", ids(16), 20));
  step();
  ASSERT_EQ(scheduler_->in_flight(), 1);
  scheduler_->add(request("b", ids(20), 4));
  run_until_idle();
  EXPECT_EQ(answers_["b"].cached_tokens, 16);
}

TEST_F(SchedulerOverlapTest, PausesFlushesAndSettlingCommitWhatIsInFlight) {
  for (const auto how : {Scheduler::Pause::kAbort, Scheduler::Pause::kRetract, Scheduler::Pause::kInPlace}) {
    for (const Steps steps : {Steps::kPuppet, Steps::kThread}) {
      make(small(), steps);
      const auto a = request("a", ids(40), 30);
      scheduler_->add(a);
      step_until_decoding("a");
      const size_t had = answers_["a"].ids.size();
      ASSERT_TRUE(scheduler_->settle().ok());
      EXPECT_EQ(scheduler_->in_flight(), 0);
      collect();
      EXPECT_EQ(answers_["a"].ids.size(), had + 1);
      step();
      EXPECT_EQ(scheduler_->in_flight(), 1);
      EXPECT_FALSE(scheduler_->flush_cache().ok()) << "a runs";
      EXPECT_EQ(scheduler_->in_flight(), 0);
      step();
      scheduler_->pause(how);
      EXPECT_EQ(scheduler_->in_flight(), 0);
      EXPECT_FALSE(scheduler_->has_work());
      scheduler_->check_invariants();
      EXPECT_EQ(scheduler_->flush_cache().ok(), how != Scheduler::Pause::kInPlace);
      scheduler_->go_on();
      run_until_idle();
      if (how == Scheduler::Pause::kAbort) {
        EXPECT_EQ(answers_["a"].finish.kind, FinishKind::kAbort);
        EXPECT_EQ(answers_["a"].ids.size(), had + 3) << "what was in flight is part of the answer";
      } else {
        EXPECT_EQ(answers_["a"].ids, alone(a, scheduler_->max_req_len()).ids);
      }
    }
  }
}

// A model that fails in its nth step.
class FailingRunner final : public models::Runner {
 public:
  FailingRunner(models::Runner& runner, int good) : runner_(runner), good_(good) {}
  const models::ModelInfo& info() const override { return runner_.info(); }
  Result<void> allocate_kv(const models::KvPlan&) override { return {}; }
  std::span<int32_t> slot_table() override { return runner_.slot_table(); }
  Result<std::span<const float>> forward(const models::StepBatch& batch) override {
    if (good_-- == 0) return Error{ErrorCode::kInternal, "the device is on fire"};
    return runner_.forward(batch);
  }

 private:
  models::Runner& runner_;
  int good_;
};

TEST_F(SchedulerOverlapTest, AFaultOfTheModelIsTheErrorOfEveryCallAfterIt) {
  for (int good = 0; good < 6; ++good) {
    const auto options = small();
    FakeRunner model(options.kv_slots, options.max_running_requests, options.context_length);
    FailingRunner failing(model, good);
    ThreadDevice device;
    Scheduler scheduler(options, failing, token_bytes, clock_, &device);
    scheduler.add(request("a", ids(10), 40));
    Result<void> stepped;
    for (int i = 0; i < 20 && stepped.ok(); ++i) stepped = scheduler.step();
    ASSERT_FALSE(stepped.ok());
    EXPECT_EQ(stepped.error().message, "the device is on fire");
    EXPECT_EQ(scheduler.step().error().message, "the device is on fire");
    EXPECT_EQ(scheduler.settle().error().message, "the device is on fire");
    EXPECT_EQ(scheduler.flush_cache().error().message, "the device is on fire");
  }
}

TEST_F(SchedulerOverlapTest, ASchedulerThatEndsWaitsForItsSteps) {
  for (int steps = 1; steps < 6; ++steps) {
    make(small(), Steps::kThread);
    scheduler_->add(request("a", ids(30), 40));
    for (int i = 0; i < steps; ++i) step();
    scheduler_.reset();
  }
}

// Who ends with the step in flight holds its slots until that is committed: nobody else is retracted for them.
TEST_F(SchedulerOverlapTest, NobodyIsRetractedBecauseOfSlotsThatAreAboutToBeFree) {
  auto options = small();
  options.kv_slots = 31;
  options.conservativeness = 0;
  make(options, Steps::kPuppet);
  scheduler_->add(request("a", ids(14), 6));
  scheduler_->add(request("b", ids(5, 9), 14));
  run_until_idle();
  EXPECT_EQ(answers_["a"].retractions + answers_["b"].retractions, 0);
  for (const char* rid : {"a", "b"}) EXPECT_EQ(answers_[rid].finish.kind, FinishKind::kLength);
}

TEST_F(SchedulerOverlapTest, TheReportOfAStepSaysWhoDidWhatWhen) {
  auto options = small();
  runner_ = std::make_unique<FakeRunner>(options.kv_slots, options.max_running_requests, options.context_length);
  runner_->on_forward = [this](const models::StepBatch&) { clock_.advance(5ms); };
  PuppetDevice device;
  Scheduler scheduler(options, *runner_, token_bytes, clock_, &device);
  std::vector<StepReport> reports;
  scheduler.observe([&](const StepReport& report) { reports.push_back(report); });
  scheduler.add(request("a", ids(10), 12));
  while (!scheduler.idle()) ASSERT_TRUE(scheduler.step().ok());
  ASSERT_EQ(reports.size(), 12u);
  for (size_t i = 0; i < reports.size(); ++i) {
    const StepReport& r = reports[i];
    EXPECT_EQ(r.computed - r.started, 5ms);
    EXPECT_LE(r.begun, r.launched);
    EXPECT_LE(r.computed, r.taken);
    EXPECT_LE(r.taken, r.committed);
    if (i > 0) {
      EXPECT_LE(reports[i - 1].computed, r.started);
      EXPECT_LE(r.launched, reports[i - 1].taken) << "it was planned before that one was committed";
    }
  }
}

}  // namespace
}  // namespace sluice::engine
