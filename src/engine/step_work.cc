#include "engine/step_work.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/pulse.h"

namespace sluice::engine {
namespace {

// A grammar that takes longer than this to say what may come next, for so many tokens one after the other, takes the
// time of everybody else. A moment in which this thread did not run is no such row.
constexpr Duration kSlowGrammar = std::chrono::milliseconds(200);
constexpr int kMostSlowTokens = 3;

}  // namespace

void StepWork::clear() {
  batch.clear();
  rows.clear();
  futures.clear();
  cancelled = false;
}

StepComputer::StepComputer(models::Runner& runner, const Clock& clock, int64_t slots, bool keep_routed_experts)
    : runner_(runner), clock_(clock) {
  if (keep_routed_experts) routed_experts_.emplace(slots, runner.info().num_layers, runner.last_routing());
}

Result<void> StepComputer::compute(StepWork& work) {
  for (const auto& future : work.futures) {
    SLUICE_CHECK(future.row < chosen_.size() && chosen_[future.row] != kFutureToken,
                 "row {} of the step before chose no token", future.row);
    work.batch.set_token(future.at, chosen_[future.row]);
  }
  const models::StepBatch batch = work.batch.view();
  work.started = clock_.now();
  const auto forward = runner_.forward(batch);
  if (!forward.ok() && forward.error().code != ErrorCode::kCancelled) return forward.error();
  work.forward_time = clock_.now() - work.started;
  if (!forward.ok()) {
    work.cancelled = true;
    work.computed = clock_.now();
    return {};
  }
  const std::span<const float> logits = *forward;
  if (routed_experts_) routed_experts_->record(batch.kv_slots, runner_.last_routing());

  const auto vocab = static_cast<size_t>(runner_.info().vocab_size);
  size_t index = 0;  // of the row of logits
  chosen_.clear();
  for (auto& row : work.rows) {
    if (row.scores) {
      const auto before = static_cast<size_t>(row.scored.count > 0 ? row.scored.from - row.head.from : 0);
      take_input_logprobs(row, logits.subspan((index + before) * vocab));
    }
    if (row.hidden_from) take_hidden(row, index);
    index += static_cast<size_t>(row.head.count);
    if (row.last) {
      beat(0);
      if (row.request->in.embed) take_embedding(row, index);
      if (row.samples) choose(row, logits.subspan(index * vocab, vocab));
      ++index;
    }
    chosen_.push_back(row.token);
  }
  work.computed = clock_.now();
  return {};
}

std::vector<int32_t> StepComputer::routed_experts(std::span<const int32_t> slots) const {
  return routed_experts_ ? routed_experts_->of(slots) : std::vector<int32_t>();
}

void StepComputer::take_input_logprobs(StepWork::Row& row, std::span<const float> logits) {
  const auto vocab = static_cast<size_t>(runner_.info().vocab_size);
  const GenerateRequest& in = row.request->in;
  for (size_t i = 0; i < row.targets.size(); ++i) {
    beat(0);
    row.input_logprobs.push_back(
        sampler_.logprobs(logits.subspan(i * vocab, vocab), row.targets[i], in.top_logprobs_num, in.token_ids_logprob));
  }
}

// `first_row`: of what went through the head for this sequence, among the step's rows.
void StepComputer::take_hidden(StepWork::Row& row, size_t first_row) {
  const int64_t count = row.head.count + (row.last ? 1 : 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t offset = i < row.head.count ? row.head.from + i : row.new_tokens - 1;
    if (row.first_position + offset < *row.hidden_from) continue;  // had before a retraction
    beat(0);
    const auto values = runner_.hidden(static_cast<int64_t>(first_row) + i);
    row.hidden.insert(row.hidden.end(), values.begin(), values.end());
  }
}

void StepComputer::take_embedding(StepWork::Row& row, size_t index) {
  row.embedding = runner_.hidden(static_cast<int64_t>(index));
  if (runner_.info().num_labels > 0) return;
  double square = 0;
  for (const float x : row.embedding) square += static_cast<double>(x) * static_cast<double>(x);
  const auto scale = static_cast<float>(square > 0 ? 1 / std::sqrt(square) : 0);
  for (float& x : row.embedding) x *= scale;
}

void StepComputer::choose(StepWork::Row& row, std::span<const float> logits) {
  Request& r = *row.request;
  if (r.grammar_over) {  // it ended with the step before, which nobody knew when this one was planned
    row.token = 0;
    return;
  }
  std::vector<int32_t> forbidden;
  if (row.generated < r.in.sampling.min_new_tokens) {
    forbidden = r.in.sampling.stop_token_ids;
    const auto& eos = runner_.info().eos_token_ids;
    forbidden.insert(forbidden.end(), eos.begin(), eos.end());
  }
  std::span<const uint32_t> allowed;
  const bool constrained = r.grammar && r.grammar_begun;
  if (constrained) allowed = allowed_tokens(r, forbidden);
  row.token = sampler_.sample({.logits = logits,
                               .params = &r.in.sampling,
                               .counts = &r.counts,
                               .allowed = allowed,
                               .forbidden = forbidden,
                               .seed = r.seed,
                               .position = static_cast<uint64_t>(row.generated)});
  r.grammar_begun |= row.token == r.in.sampling.grammar_after;
  row.rejected = constrained && !r.grammar->accept(row.token);
  row.grammar_over = r.grammar && !row.rejected && r.grammar->finished();
  row.too_slow = constrained && r.slow_grammar_tokens >= kMostSlowTokens;
  row.rejected |= row.too_slow;
  r.grammar_over = row.rejected || row.grammar_over;
  if (row.rejected) return;
  if (r.in.return_logprob) {
    row.logprobs = sampler_.logprobs(logits, row.token, r.in.top_logprobs_num, r.in.token_ids_logprob);
  }
  if (has_penalties(r.in.sampling)) ++r.counts[row.token];
}

// What the grammar allows, less what is forbidden as long as anything is left: where only the end may come, it comes.
std::span<const uint32_t> StepComputer::allowed_tokens(Request& r, std::vector<int32_t>& forbidden) {
  mask_.assign((static_cast<size_t>(runner_.info().vocab_size) + 31) / 32, 0);
  const TimePoint begun = clock_.now();
  const bool constrained = r.grammar->allowed(mask_);
  const Duration took = clock_.now() - begun;
  ++r.grammar_tokens;
  r.grammar_time += took;
  r.longest_grammar_time = std::max(r.longest_grammar_time, took);
  r.slow_grammar_tokens = took > kSlowGrammar ? r.slow_grammar_tokens + 1 : 0;
  if (!constrained) return {};
  const std::vector<int32_t> ends = std::exchange(forbidden, {});
  std::vector<uint32_t> rest = ends.empty() ? std::vector<uint32_t>() : mask_;
  for (const int32_t token : ends) {
    if (token >= 0 && static_cast<size_t>(token) / 32 < rest.size()) rest[token / 32] &= ~(uint32_t{1} << (token % 32));
  }
  if (std::any_of(rest.begin(), rest.end(), [](uint32_t word) { return word != 0; })) mask_ = std::move(rest);
  return mask_;
}

}  // namespace sluice::engine
