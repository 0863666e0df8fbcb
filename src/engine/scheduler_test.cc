#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"
#include "testing/fake_clock.h"

namespace sluice::engine {
namespace {

constexpr int64_t kVocab = 40;
constexpr int32_t kEos = 0;

// The logits after a prefix: a function of all of its tokens and their order.
std::vector<float> logits_after(std::span<const int32_t> prefix) {
  uint64_t h = 1469598103934665603u;
  for (const int32_t token : prefix) h = (h ^ static_cast<uint64_t>(token + 1)) * 1099511628211u;
  std::vector<float> row(kVocab);
  for (int64_t i = 0; i < kVocab; ++i) {
    row[static_cast<size_t>(i)] = static_cast<float>(6 * random_unit(h, static_cast<uint64_t>(i)));
  }
  return row;
}

// A "model" whose K and V are the token and the position. It computes logits from what it reads back through the slot
// table, so a wrong slot, a slot freed too early or a forgotten write gives other tokens.
class FakeRunner final : public models::Runner {
 public:
  FakeRunner(int64_t slots, int64_t rows, int64_t width) {
    info_.vocab_size = kVocab;
    info_.context_length = width;
    info_.eos_token_ids = {kEos};
    EXPECT_TRUE(allocate_kv({slots, static_cast<int32_t>(rows), static_cast<int32_t>(width)}).ok());
  }
  const models::ModelInfo& info() const override { return info_; }
  Result<void> allocate_kv(const models::KvPlan& plan) override {
    kv_.assign(static_cast<size_t>(plan.slots), {-1, -1});
    width_ = static_cast<size_t>(plan.table_width);
    table_.assign(static_cast<size_t>(plan.table_rows) * width_, -1);
    return {};
  }
  std::span<int32_t> slot_table() override { return table_; }
  Result<std::span<const float>> forward(const models::StepBatch& b) override {
    const size_t n_seqs = b.seq_lens.size();
    EXPECT_EQ(b.query_start.size(), n_seqs + 1);
    EXPECT_EQ(b.token_ids.size(), static_cast<size_t>(b.query_start.back()));
    std::set<int32_t> written, rows;
    for (size_t i = 0; i < b.token_ids.size(); ++i) {
      EXPECT_GT(b.kv_slots[i], 0);
      EXPECT_TRUE(written.insert(b.kv_slots[i]).second) << "two tokens are written to one slot";
      kv_.at(static_cast<size_t>(b.kv_slots[i])) = {b.token_ids[i], b.positions[i]};
    }
    out_.clear();
    size_t next_logit = 0;
    for (size_t s = 0; s < n_seqs; ++s) {
      EXPECT_TRUE(rows.insert(b.table_rows[s]).second) << "two sequences have one table row";
      const auto row = std::span(table_).subspan(static_cast<size_t>(b.table_rows[s]) * width_, width_);
      const int32_t first = b.query_start[s];
      const int32_t end = b.query_start[s + 1];
      std::vector<int32_t> tokens;
      for (int32_t p = 0; p < b.seq_lens[s]; ++p) {
        const auto& [token, position] = kv_.at(static_cast<size_t>(row[static_cast<size_t>(p)]));
        EXPECT_EQ(position, p);
        tokens.push_back(token);
      }
      EXPECT_EQ(b.positions[static_cast<size_t>(end) - 1], b.seq_lens[s] - 1);
      for (; next_logit < b.logit_rows.size() && b.logit_rows[next_logit] < end; ++next_logit) {
        EXPECT_GE(b.logit_rows[next_logit], first);
        const auto position = static_cast<size_t>(b.positions[static_cast<size_t>(b.logit_rows[next_logit])]);
        const auto logits = logits_after(std::span(tokens).first(position + 1));
        out_.insert(out_.end(), logits.begin(), logits.end());
      }
    }
    EXPECT_EQ(next_logit, b.logit_rows.size());
    largest_step = std::max(largest_step, static_cast<int64_t>(b.token_ids.size()));
    computed += static_cast<int64_t>(b.token_ids.size());
    return std::span<const float>(out_);
  }

  int64_t largest_step = 0;
  int64_t computed = 0;

 private:
  models::ModelInfo info_;
  std::vector<std::pair<int32_t, int32_t>> kv_;
  std::vector<int32_t> table_;
  size_t width_ = 0;
  std::vector<float> out_;
};

// Two letters per token, so that stop strings cross tokens.
std::string_view token_bytes(int32_t token) {
  static const auto texts = [] {
    std::vector<std::string> t;
    for (int i = 0; i < kVocab; ++i) t.push_back({static_cast<char>('a' + i % 5), static_cast<char>('a' + i / 5 % 3)});
    return t;
  }();
  return texts.at(static_cast<size_t>(token));
}

struct Answer {
  std::vector<int32_t> ids;
  FinishReason finish;
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, retractions = 0;
  int finished = 0;
  int messages = 0;
  std::vector<PositionLogprobs> input_logprobs, output_logprobs;
};

// One request alone, by the rules and without a scheduler.
Answer alone(const GenerateRequest& request, int64_t max_req_len) {
  Answer a;
  const auto& p = request.sampling;
  std::vector<int32_t> tokens = request.input_ids;
  const auto prompt = static_cast<int64_t>(tokens.size());
  const int64_t max_new = std::min(p.max_new_tokens, max_req_len - prompt - 1);
  Sampler sampler;
  if (request.logprob_start_len >= 0) {
    for (int64_t at = request.logprob_start_len; at < prompt; ++at) {
      a.input_logprobs.emplace_back();
      if (at == 0) continue;
      a.input_logprobs.back() =
          sampler.logprobs(logits_after(std::span(tokens).first(static_cast<size_t>(at))),
                           tokens[static_cast<size_t>(at)], request.top_logprobs_num, request.token_ids_logprob);
    }
  }
  TokenCounts counts;
  std::string text;
  a.finish.kind = FinishKind::kLength;
  while (static_cast<int64_t>(a.ids.size()) < max_new) {
    const auto row = logits_after(tokens);
    std::vector<int32_t> forbidden;
    if (static_cast<int64_t>(a.ids.size()) < p.min_new_tokens) {
      forbidden = p.stop_token_ids;
      forbidden.push_back(kEos);
    }
    const int32_t token = sampler.sample({.logits = row,
                                          .params = &p,
                                          .counts = &counts,
                                          .forbidden = forbidden,
                                          .seed = p.seed.value_or(0),
                                          .position = a.ids.size()});
    if (request.return_logprob) {
      a.output_logprobs.push_back(sampler.logprobs(row, token, request.top_logprobs_num, request.token_ids_logprob));
    }
    ++counts[token];
    tokens.push_back(token);
    a.ids.push_back(token);
    if (static_cast<int64_t>(a.ids.size()) == max_new) break;
    const bool stops = token == kEos || std::count(p.stop_token_ids.begin(), p.stop_token_ids.end(), token) > 0;
    if (stops && !p.ignore_eos) {
      a.finish = {.kind = FinishKind::kStopToken, .matched_token = token};
      return a;
    }
    text += token_bytes(token);
    for (const auto& stop : p.stop) {
      if (text.find(stop) == std::string::npos) continue;
      a.finish = {.kind = FinishKind::kStopString, .matched_string = stop};
      return a;
    }
  }
  return a;
}

class SchedulerTest : public ::testing::Test {
 protected:
  void make(SchedulerOptions options) {
    scheduler_.reset();
    runner_ = std::make_unique<FakeRunner>(options.kv_slots, options.max_running_requests, options.context_length);
    scheduler_ = std::make_unique<Scheduler>(options, *runner_, token_bytes, clock_);
    answers_.clear();
  }
  void collect() {
    for (auto& out : scheduler_->take_outputs()) {
      Answer& a = answers_[out.rid];
      EXPECT_EQ(a.finished, 0) << out.rid << " got news after its end";
      a.ids.insert(a.ids.end(), out.new_ids.begin(), out.new_ids.end());
      if (out.finish.kind != FinishKind::kNone) {
        ++a.finished;
        a.finish = out.finish;
      }
      if (a.messages++ > 0) {
        EXPECT_TRUE(out.input_logprobs.empty());
      }
      for (auto& l : out.input_logprobs) a.input_logprobs.push_back(std::move(l));
      for (auto& l : out.output_logprobs) a.output_logprobs.push_back(std::move(l));
      EXPECT_EQ(out.completion_tokens, static_cast<int64_t>(a.ids.size()));
      a.prompt_tokens = out.prompt_tokens;
      a.completion_tokens = out.completion_tokens;
      a.cached_tokens = out.cached_tokens;
      a.retractions = out.retractions;
    }
  }
  void step() {
    ASSERT_TRUE(scheduler_->step().ok());
    collect();
  }
  void run_until_idle() {
    for (int i = 0; i < 100'000 && !scheduler_->idle(); ++i) step();
    ASSERT_TRUE(scheduler_->idle());
    collect();
    scheduler_->check_invariants();
  }

  static SchedulerOptions small() {
    return {.kv_slots = 201, .max_running_requests = 4, .chunked_prefill_size = 16, .context_length = 150};
  }
  static GenerateRequest request(std::string rid, std::vector<int32_t> ids, int64_t max_new = 8) {
    GenerateRequest r{.rid = std::move(rid), .input_ids = std::move(ids)};
    r.sampling.max_new_tokens = max_new;
    r.sampling.temperature = 0;
    r.sampling.ignore_eos = true;
    return r;
  }
  static std::vector<int32_t> ids(int64_t n, int32_t first = 1) {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<int32_t>((first + i) % kVocab));
    return out;
  }
  static void expect_equal(const std::vector<PositionLogprobs>& got, const std::vector<PositionLogprobs>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(got[i].chosen.has_value(), want[i].chosen.has_value()) << i;
      if (got[i].chosen) {
        EXPECT_EQ(got[i].chosen->token_id, want[i].chosen->token_id);
        EXPECT_EQ(got[i].chosen->logprob, want[i].chosen->logprob);
      }
      ASSERT_EQ(got[i].top.size(), want[i].top.size());
      for (size_t k = 0; k < got[i].top.size(); ++k) EXPECT_EQ(got[i].top[k].token_id, want[i].top[k].token_id);
      EXPECT_EQ(got[i].requested.size(), want[i].requested.size());
    }
  }

  testing::FakeClock clock_;
  std::unique_ptr<FakeRunner> runner_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<std::string, Answer> answers_;
};

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
    const Answer want = alone(q, scheduler_->max_req_len());
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
    const Answer& a = answers_[rid];
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
  scheduler_->add(request("HEALTH_CHECK_1", {0}, 1));
  run_until_idle();
  EXPECT_EQ(answers_["HEALTH_CHECK_1"].ids.size(), 1u);
  scheduler_->add(request("a", ids(10), 5));
  scheduler_->add(request("HEALTH_CHECK_2", {0}, 1));
  collect();
  EXPECT_EQ(answers_["HEALTH_CHECK_2"].finish.kind, FinishKind::kLength);
  EXPECT_EQ(scheduler_->snapshot().requests_total, 1u) << "health checks are not traffic";
  run_until_idle();
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
  options.longest_prefix_first = true;
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

// Random pools, options, arrivals, lengths and aborts. Every answer equals that of the request alone; nothing leaks.
TEST_F(SchedulerTest, AgreesWithOneRequestAtATimeUnderRandomLoad) {
  uint64_t retracted = 0, evicted = 0, aborted = 0, cached = 0, chunks = 0;
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Rng rng(seed);
    SchedulerOptions options{
        .kv_slots = 40 + static_cast<int64_t>(rng.below(200)),
        .max_running_requests = 1 + static_cast<int64_t>(rng.below(7)),
        .chunked_prefill_size = rng.below(3) == 0 ? 0 : 1 + static_cast<int64_t>(rng.below(20)),
        .max_prefill_tokens = 4 + static_cast<int64_t>(rng.below(60)),
        .context_length = 100,
        .longest_prefix_first = rng.below(2) == 0,
        .prefix_cache = rng.below(4) != 0,
        .conservativeness = rng.below(2) ? 0.0 : rng.uniform(),
        .seed = seed,
    };
    if (rng.below(4) == 0) options.prefill_max_requests = 1 + rng.below(3);
    make(options);
    std::map<std::string, GenerateRequest> sent;
    std::vector<int32_t> stem = ids(30);
    for (int event = 0; event < 150; ++event) {
      if (rng.below(3) == 0) {
        GenerateRequest r{.rid = fmt::format("r{}", event)};
        // Prompts share stems of various lengths.
        const auto longest = static_cast<uint64_t>(scheduler_->max_req_input_len() - 1);
        const auto n = 1 + rng.below(std::min<uint64_t>(longest, 50));
        const auto shared = std::min<uint64_t>(n, rng.below(31));
        r.input_ids.assign(stem.begin(), stem.begin() + static_cast<std::ptrdiff_t>(shared));
        while (r.input_ids.size() < n) r.input_ids.push_back(static_cast<int32_t>(rng.below(4)));
        auto& p = r.sampling;
        p.max_new_tokens = static_cast<int64_t>(rng.below(60));
        p.min_new_tokens = static_cast<int64_t>(rng.below(4));
        p.temperature = rng.below(2) ? 0.0 : 0.5 + rng.uniform();
        p.seed = rng.next();
        p.ignore_eos = rng.below(3) == 0;
        if (rng.below(4) == 0) p.stop = {"ab", "cca"};
        if (rng.below(4) == 0) p.stop_token_ids = {static_cast<int32_t>(rng.below(kVocab))};
        if (rng.below(4) == 0) p.frequency_penalty = rng.uniform();
        if (rng.below(4) == 0) p.top_k = 5;
        r.stream_interval = 1 + static_cast<int64_t>(rng.below(4));
        r.return_logprob = rng.below(4) == 0;
        if (rng.below(4) == 0) r.logprob_start_len = static_cast<int64_t>(rng.below(n));
        r.top_logprobs_num = static_cast<int64_t>(rng.below(3));
        if (rng.below(5) == 0) r.extra_key = "other";
        sent[r.rid] = r;
        scheduler_->add(r);
      } else if (rng.below(12) == 0 && !sent.empty()) {
        scheduler_->abort({.rid = fmt::format("r{}", rng.below(150))});
      } else if (rng.below(100) == 0) {
        scheduler_->abort({.all = true});
      } else {
        chunks += scheduler_->plan().sequences.size() == 1 && !scheduler_->plan().sequences[0].last;
        step();
      }
      collect();
      scheduler_->check_invariants();
    }
    run_until_idle();
    ASSERT_EQ(answers_.size(), sent.size());
    for (const auto& [rid, r] : sent) {
      SCOPED_TRACE(rid);
      const Answer& got = answers_[rid];
      Answer want = alone(r, scheduler_->max_req_len());
      ASSERT_EQ(got.finished, 1);
      if (got.finish.kind == FinishKind::kAbort) {
        ASSERT_EQ(got.finish.status_code, 0) << got.finish.message;
        ASSERT_LE(got.ids.size(), want.ids.size());
        want.ids.resize(got.ids.size());
        ASSERT_EQ(got.ids, want.ids);
        ++aborted;
        continue;
      }
      ASSERT_EQ(got.ids, want.ids);
      ASSERT_EQ(got.finish.kind, want.finish.kind);
      ASSERT_EQ(got.finish.matched_string, want.finish.matched_string);
      ASSERT_EQ(got.finish.matched_token, want.finish.matched_token);
      ASSERT_EQ(got.prompt_tokens, static_cast<int64_t>(r.input_ids.size()));
      ASSERT_LT(got.cached_tokens, got.prompt_tokens);
      expect_equal(got.input_logprobs, want.input_logprobs);
      expect_equal(got.output_logprobs, want.output_logprobs);
    }
    const auto load = scheduler_->snapshot();
    EXPECT_EQ(load.num_used_tokens, 0);
    EXPECT_EQ(load.num_running_reqs + load.num_waiting_reqs, 0);
    ASSERT_TRUE(scheduler_->flush_cache().ok());
    EXPECT_EQ(scheduler_->snapshot().num_cached_tokens, 0);
    retracted += load.retracted_total;
    evicted += load.evicted_tokens_total;
    cached += load.cached_tokens_total;
  }
  // The load reached what it was meant to reach.
  EXPECT_GT(retracted, 50u);
  EXPECT_GT(evicted, 1000u);
  EXPECT_GT(cached, 1000u);
  EXPECT_GT(aborted, 100u);
  EXPECT_GT(chunks, 100u);
}

}  // namespace
}  // namespace sluice::engine
