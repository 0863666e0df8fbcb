#include "engine/api/openai_api.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <span>
#include <utility>

#include "engine/api/openai_request.h"
#include "engine/api/sse_writer.h"
#include "protocol/errors.h"

namespace sluice::engine {
namespace {

using nlohmann::ordered_json;
using protocol::Finish;

// Prompt and completion, where the prompt is echoed with its scores.
std::vector<protocol::PositionScores> all_scores(const protocol::Sample& sample) {
  auto scores = sample.input_scores;
  scores.insert(scores.end(), sample.output_scores.begin(), sample.output_scores.end());
  return scores;
}

ordered_json whole_chat_choice(ApiContext& api, const OpenAiRequest& request, const protocol::Sample& sample, size_t i,
                               protocol::Usage& usage) {
  ChatOutput output(api, request.parsing);
  const auto parts = output.push(sample);
  usage.reasoning_tokens += output.reasoning_tokens(sample);
  ordered_json logprobs;
  if (request.format.logprobs) logprobs = protocol::chat_logprobs(sample.output_scores, 0);
  return protocol::chat_choice(i, parts, std::move(logprobs), output.finish(sample));
}

// Of each prompt's samples those that are shown: all as they come, or the likeliest per token first.
std::vector<size_t> shown_samples(const OpenAiRequest& request, const Generation& generation) {
  const auto likelihood = [&](size_t i) {
    const auto& scores = generation.sample(i).output_scores;
    double sum = 0;
    for (const auto& position : scores) sum += position.chosen.logprob.value_or(0);
    return scores.empty() ? -std::numeric_limits<double>::infinity() : sum / static_cast<double>(scores.size());
  };
  std::vector<size_t> out;
  for (size_t first = 0; first < generation.size(); first += generation.per_prompt()) {
    std::vector<std::pair<double, size_t>> samples;
    const bool choose = request.shown < generation.per_prompt();
    for (size_t i = first; i < first + generation.per_prompt(); ++i)
      samples.emplace_back(choose ? -likelihood(i) : 0, i);
    std::ranges::sort(samples);
    for (size_t i = 0; i < request.shown; ++i) out.push_back(samples[i].second);
  }
  return out;
}

// Choice `index` of the answer is sample `i`.
ordered_json whole_completion_choice(const OpenAiRequest& request, const Generation& generation, size_t index,
                                     size_t i) {
  const auto& sample = generation.sample(i);
  ordered_json logprobs;
  int64_t offset = 0;
  if (request.format.logprobs) logprobs = protocol::completion_logprobs(all_scores(sample), 0, offset);
  const std::string echo = request.echo.empty() ? "" : request.echo[i / generation.per_prompt()];
  return protocol::completion_choice(index, echo + sample.text, std::move(logprobs), sample.finish);
}

net::Response whole_answer(ApiContext& api, const OpenAiRequest& request, const Generation& generation) {
  auto usage = generation.usage();
  auto choices = ordered_json::array();
  const auto shown = shown_samples(request, generation);
  for (const size_t i : shown) {
    const size_t index = choices.size();
    choices.push_back(request.chat ? whole_chat_choice(api, request, generation.sample(i), index, usage)
                                   : whole_completion_choice(request, generation, index, i));
    if (request.format.token_ids) choices.back()["token_ids"] = generation.sample(i).output_ids;
    if (!request.prompt_ids.empty()) {
      choices.back()["prompt_token_ids"] = request.prompt_ids[i / generation.per_prompt()];
    }
    if (const int64_t width = request.format.hidden_size; width > 0) {
      choices.back()["hidden_states"] = protocol::last_hidden_state(generation.sample(i), width);
    }
  }
  const auto make = request.chat ? protocol::chat_answer : protocol::completion_answer;
  return net::Response::json(200, make(request.format, std::move(choices), usage, generation.sample(shown.front())));
}

net::Task<> answer_whole(ApiCall& call, const OpenAiRequest& request, Generation& generation) {
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure) {
      co_await answer(call, error_response(step.failure->status, step.failure->message, step.failure->reason));
      co_return;
    }
  }
  auto made = co_await run_off_loop(
      call, generation.bulk(), [&]() -> Result<net::Response> { return whole_answer(call.api, request, generation); });
  co_await answer_made(call, std::move(made));
}

// Chunks of a stream, in the order of the runtime: text as it comes, and for chats the ends of all choices after it.
class Chunks {
 public:
  Chunks(ApiContext& api, const OpenAiRequest& request, const Generation& generation, SseWriter& out)
      : request_(request), generation_(generation), out_(out), sent_(generation.size()) {
    for (size_t i = 0; request.chat && i < sent_.size(); ++i) chats_.emplace_back(api, request.parsing);
  }

  // What is new of a sample.
  void add(size_t i) { request_.chat ? add_chat(i) : add_completion(i); }

  // After the last sample.
  void add_end() {
    for (size_t i = 0; request_.chat && i < sent_.size(); ++i) {
      out_.event(chat_chunk(i, protocol::ChatDelta::kFinish, {}, nullptr, chats_[i].finish(generation_.sample(i))));
    }
    for (size_t i = 0; request_.format.hidden_size > 0 && i < sent_.size(); ++i) {
      out_.event(protocol::hidden_state_chunk(request_.format, i, request_.chat, generation_.sample(i)));
    }
    const auto object = request_.chat ? "chat.completion.chunk" : "text_completion";
    if (request_.format.has_extension()) {
      out_.event(protocol::extension_chunk(request_.format, object, generation_.usage(), generation_.sample(0)));
    }
    if (!request_.stream.include_usage) return;
    auto usage = generation_.usage();
    for (size_t i = 0; i < chats_.size(); ++i)
      usage.reasoning_tokens += chats_[i].reasoning_tokens(generation_.sample(i));
    out_.event(protocol::usage_chunk(request_.format, object, usage));
  }

 private:
  struct Sent {
    bool begun = false;
    size_t text = 0, scores = 0, ids = 0;
    int64_t offset = 0;  // characters before what comes next
  };

  std::optional<protocol::Usage> usage(size_t i) {
    if (!request_.stream.continuous_usage_stats) return std::nullopt;
    const auto& sample = generation_.sample(i);
    return protocol::Usage{.prompt_tokens = sample.prompt_tokens,
                           .completion_tokens = sample.completion_tokens,
                           .cached_tokens = sample.cached_tokens,
                           .reasoning_tokens = request_.chat ? chats_[i].reasoning_tokens(sample) : 0};
  }

  std::string chat_chunk(size_t i, protocol::ChatDelta kind, const protocol::ChatParts& parts, ordered_json logprobs,
                         const Finish& finish, std::span<const int32_t> ids = {}) {
    const auto used = usage(i);
    return protocol::chat_chunk(request_.format, i, kind, parts, std::move(logprobs), finish, used ? &*used : nullptr,
                                ids);
  }

  // Those that no chunk has shown; none where they are not wanted.
  std::span<const int32_t> new_ids(size_t i) {
    if (!request_.format.token_ids) return {};
    const std::span<const int32_t> all = generation_.sample(i).output_ids;
    return all.subspan(std::exchange(sent_[i].ids, all.size()));
  }

  void add_chat(size_t i) {
    const auto& sample = generation_.sample(i);
    Sent& sent = sent_[i];
    if (!std::exchange(sent.begun, true)) out_.event(chat_chunk(i, protocol::ChatDelta::kRole, {}, nullptr, {}));
    auto parts = chats_[i].push(sample);
    const bool scored = request_.format.logprobs && sample.output_scores.size() > sent.scores;
    std::span<const int32_t> ids = new_ids(i);
    if (parts.empty() && !scored && ids.empty()) return;
    ordered_json logprobs;
    if (scored) logprobs = protocol::chat_logprobs(sample.output_scores, sent.scores);
    sent.scores = sample.output_scores.size();
    // Clients take one kind from a chunk.
    const auto send = [&](const protocol::ChatParts& part) {
      out_.event(chat_chunk(i, protocol::ChatDelta::kParts, part, std::exchange(logprobs, nullptr), {},
                            std::exchange(ids, {})));
    };
    if (!parts.reasoning.empty()) send({.content = "", .reasoning = std::move(parts.reasoning), .calls = {}});
    if (!parts.content.empty()) send({.content = std::move(parts.content), .reasoning = "", .calls = {}});
    if (!parts.calls.empty()) send({.content = "", .reasoning = "", .calls = std::move(parts.calls)});
    if (!logprobs.is_null() || !ids.empty()) send({});
  }

  void add_completion(size_t i) {
    const auto& sample = generation_.sample(i);
    Sent& sent = sent_[i];
    const bool first = !std::exchange(sent.begun, true);
    const std::string echo = first && !request_.echo.empty() ? request_.echo[i / generation_.per_prompt()] : "";
    const auto text = std::string_view(sample.text).substr(sent.text);
    const bool scored = request_.format.logprobs && sample.output_scores.size() > sent.scores;
    const bool ended = sample.finish.kind != Finish::Kind::kNone;
    const std::span<const int32_t> ids = new_ids(i);
    if (text.empty() && echo.empty() && !scored && !ended && ids.empty()) return;
    ordered_json logprobs;
    if (scored && first) {
      logprobs = protocol::completion_logprobs(all_scores(sample), 0, sent.offset);
    } else if (scored) {
      logprobs = protocol::completion_logprobs(sample.output_scores, sent.scores, sent.offset);
    }
    auto choice = protocol::completion_choice(i, echo + std::string(text), std::move(logprobs), sample.finish);
    if (request_.format.token_ids) choice["token_ids"] = ids;
    if (first && !request_.prompt_ids.empty()) {
      choice["prompt_token_ids"] = request_.prompt_ids[i / generation_.per_prompt()];
    }
    const auto used = usage(i);
    out_.event(protocol::completion_chunk(request_.format, std::move(choice), used ? &*used : nullptr));
    sent.text = sample.text.size();
    sent.scores = sample.output_scores.size();
  }

  const OpenAiRequest& request_;
  const Generation& generation_;
  SseWriter& out_;
  std::vector<Sent> sent_;
  std::deque<ChatOutput> chats_;  // of a chat's samples
};

net::Task<> answer_stream(ApiCall& call, const OpenAiRequest& request, Generation& generation) {
  SseWriter out(call.exchange);
  Chunks chunks(call.api, request, generation, out);
  while (!generation.done()) {
    const auto step = co_await generation.next();
    if (generation.client_gone()) co_return;
    if (step.failure) {
      const auto& [status, message, reason] = *step.failure;
      if (!call.exchange.started()) {
        co_await answer(call, error_response(status, message, reason));
        co_return;
      }
      out.event(protocol::error_event(status, message, reason));
      co_await out.finish();
      co_return;
    }
    for (const size_t i : step.grown) chunks.add(i);
    const bool there = co_await out.flush();
    if (!there) co_return;
  }
  chunks.add_end();
  co_await out.finish();
}

using Prepare = Result<OpenAiRequest> (*)(ApiContext&, const net::Headers&, std::string_view);

net::Task<> serve(ApiCall& call, Prepare prepare) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto& headers = call.exchange.request().headers;
  auto prepared = co_await run_off_loop(call, text->size(), [&] { return prepare(call.api, headers, *text); });
  if (!prepared.ok()) {
    co_await answer_error(call, prepared.error());
    co_return;
  }
  Generation generation(call, std::move(prepared->plan));
  if (const auto started = generation.start(); !started.ok()) {
    co_await answer_error(call, started.error());
  } else if (prepared->stream.stream) {
    co_await answer_stream(call, *prepared, generation);
  } else {
    co_await answer_whole(call, *prepared, generation);
  }
}

}  // namespace

net::Task<> completions(ApiCall& call) { return serve(call, prepare_completion); }
net::Task<> chat_completions(ApiCall& call) { return serve(call, prepare_chat); }

}  // namespace sluice::engine
