#include "engine/api/generation.h"

#include <algorithm>
#include <iterator>

#include "protocol/errors.h"

namespace sluice::engine {
namespace {

protocol::TokenScore score_of(const tokenizer::Tokenizer& tokenizer, const TokenLogprob& logprob, bool with_text) {
  protocol::TokenScore out{.logprob = logprob.logprob, .token_id = logprob.token_id, .text = "", .bytes = ""};
  if (with_text) {
    out.text = tokenizer.decode(std::span(&logprob.token_id, 1), /*skip_special=*/false);
    out.bytes = tokenizer.token_bytes(logprob.token_id);
  }
  return out;
}

// `unpredicted`: the token of a position without a score, the first of a prompt.
void append_scores(const tokenizer::Tokenizer& tokenizer, const std::vector<PositionLogprobs>& from, bool with_text,
                   int32_t unpredicted, std::vector<protocol::PositionScores>& to) {
  for (const auto& position : from) {
    protocol::PositionScores scores;
    scores.chosen = score_of(tokenizer, position.chosen.value_or(TokenLogprob{0, unpredicted}), with_text);
    if (!position.chosen) scores.chosen.logprob.reset();
    for (const auto& other : position.top) scores.top.push_back(score_of(tokenizer, other, with_text));
    for (const auto& other : position.requested) scores.requested.push_back(score_of(tokenizer, other, with_text));
    to.push_back(std::move(scores));
  }
}

protocol::Finish finish_of(const FinishReason& finish, int64_t completion_tokens) {
  using Kind = protocol::Finish::Kind;
  protocol::Finish out;
  switch (finish.kind) {
    case FinishKind::kNone:
      break;
    case FinishKind::kStopToken:
      out.kind = Kind::kStopToken;
      out.matched_token = finish.matched_token;
      break;
    case FinishKind::kStopString:
      out.kind = Kind::kStopString;
      out.matched_string = finish.matched_string;
      break;
    case FinishKind::kLength:
      out.kind = Kind::kLength;
      out.length = completion_tokens;
      break;
    case FinishKind::kAbort:
      out.kind = Kind::kAbort;
      out.message = finish.message;
      out.status = finish.status_code;
      if (finish.rank_ended)
        out.reason = finish.ended_two ? protocol::kTwoRanksEndedReason : protocol::kRankEndedReason;
      break;
  }
  return out;
}

double unix_seconds(int64_t nanos) { return static_cast<double>(nanos) / 1e9; }

// Log-probabilities are kept until the answer is made of them, which takes some 300 bytes for each, in a chat 600.
constexpr int64_t kMostScores = int64_t{4} << 20;

// Of each token.
int64_t scores_each(const GenerateRequest& request) {
  return request.return_logprob ? 1 + request.top_logprobs_num + std::ssize(request.token_ids_logprob) : 0;
}
// Of the prompt.
int64_t scored_positions(const GenerateRequest& request) {
  if (request.logprob_start_len < 0) return 0;
  return std::max<int64_t>(0, std::ssize(request.input_ids) - request.logprob_start_len);
}

Result<void> bound_scores(GenerationPlan& plan) {
  int64_t scores = 0, each_of_ours = 0;  // those that are asked for; of a token of all samples whose length is ours
  for (const auto& [request, format] : plan.samples) {
    const int64_t each = scores_each(request);
    scores += scored_positions(request) * each;
    (format.length_is_ours ? each_of_ours : scores) +=
        format.length_is_ours ? each : request.sampling.max_new_tokens * each;
  }
  if (scores + each_of_ours > kMostScores) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("this request asks for up to {} log-probabilities, {} at most for one answer: ask for "
                             "fewer tokens (max_tokens or max_new_tokens), alternatives or samples",
                             scores + each_of_ours, kMostScores)};
  }
  if (each_of_ours == 0) return {};
  for (auto& [request, format] : plan.samples) {
    if (!format.length_is_ours || !request.return_logprob) continue;
    request.sampling.max_new_tokens = std::min(request.sampling.max_new_tokens, (kMostScores - scores) / each_of_ours);
  }
  return {};
}

bool is_structured(const PlannedSample& planned) { return planned.request.sampling.grammar_kind != GrammarKind::kNone; }

}  // namespace

Generation::State::State(std::shared_ptr<const tokenizer::Tokenizer> tokenizer, const PlannedSample& planned)
    : text(std::move(tokenizer), planned.format.text),
      texts_in_scores(planned.format.texts_in_scores),
      first_prompt_id(planned.request.input_ids.empty() ? 0 : planned.request.input_ids.front()) {
  sample.rid = planned.request.rid;
  sample.prompt_tokens = static_cast<int64_t>(planned.request.input_ids.size());
}

Generation::Generation(ApiCall& call, GenerationPlan plan)
    : Generation(call.api, call.exchange.loop(), &call.exchange, std::move(plan), call.trace) {}

Generation::Generation(ApiContext& api, net::EventLoop& loop, GenerationPlan plan, std::shared_ptr<RequestTrace> trace)
    : Generation(api, loop, nullptr, std::move(plan), std::move(trace)) {}

Generation::Generation(ApiContext& api, net::EventLoop& loop, net::ServerExchange* client, GenerationPlan plan,
                       std::shared_ptr<RequestTrace> trace)
    : api_(api),
      client_(client),
      trace_(std::move(trace)),
      plan_(std::move(plan)),
      begun_(api.clock.now()),
      begun_unix_(unix_seconds(api.clock.unix_nanos())) {
  std::vector<SampleMeter> meters;
  const auto metrics = api.request_metrics.of(plan_.labels);
  samples_.reserve(plan_.samples.size());
  for (const auto& planned : plan_.samples) {
    samples_.emplace_back(api.model.tokenizer, planned);
    meters.push_back(plan_.measured ? SampleMeter(metrics, is_structured(planned)) : SampleMeter());
  }
  inbox_ = std::make_shared<Inbox>(loop, std::move(meters));
  if (client_ == nullptr || plan_.background) {
    in_background_ = api_.background.try_begin(inbox_->event());
    too_late_ = in_background_ == nullptr;
    return;
  }
  client_->on_client_gone([this] {
    client_gone_ = true;
    abort();
    inbox_->wake();
  });
}

Generation::~Generation() {
  if (client_ != nullptr) client_->on_client_gone({});
  inbox_->close();
  abort();
}

Result<void> Generation::start() {
  if (client_gone_) return {};
  if (too_late_) return Error{ErrorCode::kUnavailable, "the server is about to end: nothing begins in the background"};
  if (trace_ != nullptr) trace_->submitted();
  // Without a rank that was ready lengths are not known, and that is what the client is told.
  if (api_.limits().context_length > 0) SLUICE_TRY_VOID(bound_scores(plan_));
  for (size_t i = 0; i < samples_.size(); i += plan_.per_prompt) SLUICE_TRY_VOID(send(i, plan_.dp_rank));
  return {};
}

Result<void> Generation::send(size_t i, std::optional<int64_t> rank) {
  auto submitted = api_.backend.submit(std::move(plan_.samples[i].request), rank,
                                       [inbox = inbox_, i](RequestOutput output) { inbox->put(i, std::move(output)); });
  if (!submitted.ok()) return std::move(submitted).error();
  samples_[i].sent = true;
  samples_[i].sample.dp_rank = *submitted;
  return {};
}

Result<void> Generation::send_followers(size_t first) {
  for (size_t i = first + 1; i < first + plan_.per_prompt; ++i) {
    // Pinned to where the prefix is; anywhere, if that rank went away in the meantime and the client did not name it.
    const int64_t rank = *samples_[first].sample.dp_rank;
    const auto states = api_.backend.ranks();
    const bool there = static_cast<size_t>(rank) < states.size() && states[static_cast<size_t>(rank)].ready;
    SLUICE_TRY_VOID(send(i, there ? std::optional(rank) : plan_.dp_rank));
  }
  return {};
}

// The first sample was aborted before the others were sent: they end as it did.
std::vector<size_t> Generation::end_followers(size_t first) {
  std::vector<size_t> out;
  for (size_t i = first + 1; i < first + plan_.per_prompt; ++i) {
    if (samples_[i].sent || samples_[i].ended) continue;
    samples_[i].sample.finish = samples_[first].sample.finish;
    end(samples_[i]);
    out.push_back(i);
  }
  return out;
}

void Generation::fail(Step& step, size_t i, Failure failure) {
  samples_[i].sample.finish = {.kind = protocol::Finish::Kind::kAbort,
                               .message = failure.message,
                               .status = failure.status,
                               .reason = failure.reason};
  if (trace_ != nullptr && failure.status >= 500) trace_->fail(failure.message);
  step.failure = std::move(failure);
  step.failed = i;
  abort();
}

net::Task<Generation::Step> Generation::next() {
  Step step;
  while (step.grown.empty() && !client_gone_ && !done()) {
    if (in_background_ && api_.background.stopping()) {
      fail(step, first_open(), {503, "the server has ended before the answer was there", ""});
      break;
    }
    // Ends with the samples: every request that the backend has accepted ends (engine/backend.h).
    co_await inbox_->wait();
    if (client_gone_) break;
    for (auto& [i, output] : inbox_->take()) {
      take(i, std::move(output));
      step.grown.push_back(i);
      const auto& finish = samples_[i].sample.finish;
      const bool first = i % plan_.per_prompt == 0;
      if (finish.kind == protocol::Finish::Kind::kAbort) {
        if (finish.status != 0) {
          fail(step, i, {finish.status, finish.message, finish.reason});
          break;
        }
        if (first) {
          const auto ended = end_followers(i);
          step.grown.insert(step.grown.end(), ended.begin(), ended.end());
        }
      } else if (first && plan_.per_prompt > 1 && !samples_[i + 1].sent && !samples_[i + 1].ended) {
        if (auto sent = send_followers(i); !sent.ok()) {
          fail(step, i, {protocol::http_status(sent.error().code), sent.error().message, ""});
          break;
        }
      }
    }
  }
  if (client_gone_) step.grown.clear();
  co_return step;
}

void Generation::take(size_t i, RequestOutput output) {
  State& state = samples_[i];
  protocol::Sample& sample = state.sample;
  if (state.ended) return;
  const auto& tokenizer = *api_.model.tokenizer;
  state.text.push(output.new_ids, output.finish, sample.text);
  sample.output_ids.insert(sample.output_ids.end(), output.new_ids.begin(), output.new_ids.end());
  sample.finish = finish_of(output.finish, output.completion_tokens);
  sample.prompt_tokens = output.prompt_tokens;
  sample.completion_tokens = output.completion_tokens;
  sample.cached_tokens = output.cached_tokens;
  sample.retractions = output.retractions;
  sample.dp_rank = output.dp_rank;
  append_scores(tokenizer, output.input_logprobs, state.texts_in_scores, state.first_prompt_id, sample.input_scores);
  append_scores(tokenizer, output.output_logprobs, state.texts_in_scores, 0, sample.output_scores);
  if (!output.embedding.empty()) sample.embedding = std::move(output.embedding);
  if (output.finish.kind == FinishKind::kNone) return;
  if (trace_ != nullptr) trace_->sample_ended(i, output);
  sample.hidden_states = std::move(output.hidden_states);
  sample.routed_experts = std::move(output.routed_experts);
  end(state);
  if (api_.settings.metrics) sample.times = times_of(output, sample.answered);
}

void Generation::end(State& state) {
  state.ended = true;
  ++ended_;
  state.sample.e2e_latency = seconds(api_.clock.now() - begun_);
  state.sample.answered = unix_seconds(api_.clock.unix_nanos());
}

protocol::SampleTimes Generation::times_of(const RequestOutput& output, double finished) const {
  const RequestTimes& times = output.times;
  protocol::SampleTimes out{.request_received = begun_unix_, .request_finished = finished};
  if (times.begun_unix_nanos == 0) return out;
  out.queue = times.queue;
  out.forward_entry = unix_seconds(times.begun_unix_nanos);
  out.inference = finished - *out.forward_entry;
  if (times.prefilled_unix_nanos == 0) return out;
  out.prefill_finished = unix_seconds(times.prefilled_unix_nanos);
  out.prefill = times.prefill;
  const double decoding = finished - *out.prefill_finished;
  if (output.completion_tokens > 1 && decoding > 0) {
    out.decode_throughput = static_cast<double>(output.completion_tokens - 1) / decoding;
  }
  return out;
}

size_t Generation::first_open() const {
  const auto at = std::ranges::find_if(samples_, [](const State& state) { return !state.ended; });
  return static_cast<size_t>(at - samples_.begin());
}

void Generation::abort() {
  for (auto& state : samples_) {
    if (!state.sent || state.ended || std::exchange(state.aborted, true)) continue;
    api_.backend.abort(state.sample.rid);
  }
}

size_t Generation::bulk() const {
  constexpr size_t kScore = 32, kValue = 16;
  size_t out = 0;
  for (const auto& state : samples_) {
    for (const auto* scores : {&state.sample.input_scores, &state.sample.output_scores}) {
      for (const auto& position : *scores) out += (1 + position.top.size() + position.requested.size()) * kScore;
    }
    out += state.sample.hidden_states.size() * kValue;
  }
  return out;
}

protocol::Usage Generation::usage() const {
  protocol::Usage out;
  for (size_t i = 0; i < samples_.size(); ++i) {
    const auto& sample = samples_[i].sample;
    out.completion_tokens += sample.completion_tokens;
    if (i % plan_.per_prompt != 0) continue;
    out.prompt_tokens += sample.prompt_tokens;
    out.cached_tokens += sample.cached_tokens;
  }
  return out;
}

}  // namespace sluice::engine
