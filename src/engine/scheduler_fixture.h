// For tests of the scheduler: a model whose answers depend on every token that it reads back, and one request at a time
// as an oracle.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/scheduler.h"
#include "testing/fake_clock.h"

namespace sluice::engine {

inline constexpr int64_t kVocab = 40;
inline constexpr int32_t kEos = 0;

// A function of all tokens and their order, one after another.
inline constexpr uint64_t kFirstState = 1469598103934665603u;
inline uint64_t next_state(uint64_t state, int32_t token) {
  return (state ^ static_cast<uint64_t>(token + 1)) * 1099511628211u;
}

// The logits after a prefix.
inline std::vector<float> logits_after(std::span<const int32_t> prefix) {
  uint64_t h = kFirstState;
  for (const int32_t token : prefix) h = next_state(h, token);
  std::vector<float> row(kVocab);
  for (int64_t i = 0; i < kVocab; ++i) {
    row[static_cast<size_t>(i)] = static_cast<float>(6 * random_unit(h, static_cast<uint64_t>(i)));
  }
  return row;
}

// What the logits after a prefix are made of.
inline std::vector<float> hidden_after(std::span<const int32_t> prefix) {
  return {static_cast<float>(prefix.size()), logits_after(prefix)[0]};
}

// A "model" whose K and V are the token and the position. It computes logits from what it reads back through the slot
// table, so a wrong slot, a slot freed too early or a forgotten write gives other tokens. With kept states it has a
// state of every sequence too, which must be that of all of its tokens.
class FakeRunner final : public models::Runner {
 public:
  FakeRunner(int64_t slots, int64_t rows, int64_t width, int64_t page_size = 1, int64_t kept_states = 0)
      : page_size_(page_size) {
    info_.vocab_size = kVocab;
    info_.num_layers = 3;
    info_.hidden_size = 2;
    info_.context_length = width;
    info_.eos_token_ids = {kEos};
    info_.state_bytes_per_sequence = kept_states > 0 ? 8 : 0;
    EXPECT_TRUE(
        allocate_kv({slots, static_cast<int32_t>(rows), static_cast<int32_t>(width), static_cast<int32_t>(kept_states)})
            .ok());
  }
  const models::ModelInfo& info() const override { return info_; }
  Result<void> allocate_kv(const models::KvPlan& plan) override {
    kv_.assign(static_cast<size_t>(plan.slots), {-1, -1});
    width_ = static_cast<size_t>(plan.table_width);
    table_.assign(static_cast<size_t>(plan.table_rows) * width_, -1);
    states_.assign(static_cast<size_t>(plan.table_rows + plan.kept_states), 0);
    return {};
  }
  void copy_state(int32_t from, int32_t to) override {
    states_.at(static_cast<size_t>(to)) = states_.at(static_cast<size_t>(from));
    ++copied_states;
  }
  std::span<int32_t> slot_table() override { return table_; }
  void ask_between_layers(std::function<bool()> goes_on) override { goes_on_ = std::move(goes_on); }
  Result<std::span<const float>> forward(const models::StepBatch& b) override {
    for (int layer = 0; goes_on_ && layer < info_.num_layers; ++layer) {
      if (!goes_on_()) return Error{ErrorCode::kCancelled, "ended"};
    }
    const size_t n_seqs = b.seq_lens.size();
    EXPECT_EQ(b.query_start.size(), n_seqs + 1);
    EXPECT_EQ(b.token_ids.size(), static_cast<size_t>(b.query_start.back()));
    std::set<int32_t> written, rows;
    for (size_t i = 0; i < b.token_ids.size(); ++i) {
      EXPECT_GE(b.kv_slots[i], page_size_) << "a slot of the dummy page";
      EXPECT_TRUE(written.insert(b.kv_slots[i]).second) << "two tokens are written to one slot";
      kv_.at(static_cast<size_t>(b.kv_slots[i])) = {b.token_ids[i], b.positions[i]};
    }
    out_.clear();
    hidden_.clear();
    chosen_.clear();
    for (const int32_t token : b.token_ids) chosen_.insert(chosen_.end(), {token, token + 1});
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
      uint64_t& state = states_.at(static_cast<size_t>(b.table_rows[s]));
      if (b.positions[static_cast<size_t>(first)] == 0) state = kFirstState;
      for (int32_t i = first; i < end; ++i) state = next_state(state, b.token_ids[static_cast<size_t>(i)]);
      if (states_.size() > table_.size() / width_) {
        uint64_t want = kFirstState;
        for (const int32_t token : tokens) want = next_state(want, token);
        EXPECT_EQ(state, want) << "the state is that of other tokens";
      }
      for (; next_logit < b.logit_rows.size() && b.logit_rows[next_logit] < end; ++next_logit) {
        EXPECT_GE(b.logit_rows[next_logit], first);
        const auto position = static_cast<size_t>(b.positions[static_cast<size_t>(b.logit_rows[next_logit])]);
        const auto logits = logits_after(std::span(tokens).first(position + 1));
        out_.insert(out_.end(), logits.begin(), logits.end());
        hidden_.push_back(hidden_after(std::span(tokens).first(position + 1)));
      }
    }
    EXPECT_EQ(next_logit, b.logit_rows.size());
    largest_step = std::max(largest_step, static_cast<int64_t>(b.token_ids.size()));
    computed += static_cast<int64_t>(b.token_ids.size());
    if (on_forward) on_forward(b);
    return std::span<const float>(out_);
  }

  std::vector<float> hidden(int64_t row) const override { return hidden_.at(static_cast<size_t>(row)); }
  // Of three layers the second has experts; a token goes to those of its own number and the next one.
  models::Routing last_routing() const override {
    return {.layers = 1, .top_k = 2, .numbers = {1}, .experts = chosen_, .margins = {}};
  }

  std::function<void(const models::StepBatch&)> on_forward;
  int64_t largest_step = 0;
  int64_t computed = 0;
  int64_t copied_states = 0;

 private:
  models::ModelInfo info_;
  std::function<bool()> goes_on_;
  std::vector<std::pair<int32_t, int32_t>> kv_;
  std::vector<int32_t> table_;
  size_t width_ = 0;
  const int64_t page_size_;
  std::vector<uint64_t> states_;
  std::vector<float> out_;
  std::vector<std::vector<float>> hidden_;  // of the last step's logits
  std::vector<int32_t> chosen_;             // in the last step
};

// Two letters per token, so that stop strings cross tokens.
inline std::string_view token_bytes(int32_t token) {
  static const auto texts = [] {
    std::vector<std::string> t;
    for (int i = 0; i < kVocab; ++i) t.push_back({static_cast<char>('a' + i % 5), static_cast<char>('a' + i / 5 % 3)});
    return t;
  }();
  return texts.at(static_cast<size_t>(token));
}

struct SchedulerAnswer {
  std::vector<int32_t> ids;
  FinishReason finish;
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, retractions = 0;
  int finished = 0;
  int messages = 0;
  std::vector<PositionLogprobs> input_logprobs, output_logprobs;
  std::vector<float> hidden_states, embedding;
  std::vector<int32_t> routed_experts;
};

// One request alone, by the rules and without a scheduler.
inline SchedulerAnswer alone(const GenerateRequest& request, int64_t max_req_len) {
  SchedulerAnswer a;
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

// How steps are computed.
enum class Steps : uint8_t {
  kInline,
  kPuppet,  // with one step planned ahead, on the test's thread and at times that it chooses
  kThread,  // the same on a thread of their own
};
inline std::string name_of(const ::testing::TestParamInfo<Steps>& info) {
  return info.param == Steps::kInline ? "Inline" : info.param == Steps::kPuppet ? "Puppet" : "Thread";
}

// Computes a step as soon as it can, or as late as it may, at random.
class PuppetDevice final : public StepDevice {
 public:
  explicit PuppetDevice(uint64_t seed = 1) : rng_(seed) {}
  int depth() const override { return 2; }
  void submit(Step step) override {
    EXPECT_LT(steps_.size() + results_.size(), 2u);
    most_open = std::max(most_open, steps_.size() + results_.size() + 1);
    steps_.push_back(std::move(step));
    while (!steps_.empty() && rng_.below(2) == 0) compute();
  }
  Result<void> wait() override {
    if (results_.empty()) compute();
    Result<void> result = results_.front();
    results_.pop_front();
    return result;
  }

  size_t most_open = 0;

 private:
  void compute() {
    if (last_.ok()) last_ = steps_.front()();
    steps_.pop_front();
    results_.push_back(last_);
  }

  Rng rng_;
  std::deque<Step> steps_;
  std::deque<Result<void>> results_;
  Result<void> last_;
};

class SchedulerTest : public ::testing::Test {
 protected:
  void make(SchedulerOptions options, Steps steps = Steps::kInline, uint64_t seed = 1) {
    scheduler_.reset();
    device_.reset();
    if (options.radix.state_rows > 0) steps = Steps::kInline;  // nothing else is for models with states
    if (steps == Steps::kPuppet) device_ = std::make_unique<PuppetDevice>(seed);
    if (steps == Steps::kThread) device_ = std::make_unique<ThreadDevice>();
    runner_ = std::make_unique<FakeRunner>(options.kv_slots, options.max_running_requests, options.context_length,
                                           options.page_size, options.radix.state_rows);
    options.radix.first_state_row = static_cast<int32_t>(options.max_running_requests);
    scheduler_ = std::make_unique<Scheduler>(options, *runner_, token_bytes, clock_, device_.get());
    answers_.clear();
  }
  void collect() {
    for (auto& out : scheduler_->take_outputs()) {
      SchedulerAnswer& a = answers_[out.rid];
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
      EXPECT_TRUE(out.finish.kind != FinishKind::kNone || out.hidden_states.empty()) << "they come at the end";
      a.hidden_states = std::move(out.hidden_states);
      a.routed_experts = std::move(out.routed_experts);
      a.embedding = std::move(out.embedding);
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
  std::unique_ptr<StepDevice> device_;
  std::unique_ptr<Scheduler> scheduler_;
  std::map<std::string, SchedulerAnswer> answers_;
};

}  // namespace sluice::engine
