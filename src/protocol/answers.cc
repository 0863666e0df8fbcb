#include "protocol/answers.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <unordered_map>

#include "protocol/base64.h"
#include "protocol/fields.h"

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kChunkObject = "chat.completion.chunk";
constexpr std::string_view kCompletionObject = "text_completion";

// JSON has no infinity; a token that was masked out has this, as OpenAI's API writes it.
ordered_json number(const std::optional<float>& logprob) {
  if (!logprob) return nullptr;
  return std::isfinite(*logprob) ? static_cast<double>(*logprob) : -9999.0;
}

ordered_json triple(const TokenScore& score, bool with_text) {
  auto out = ordered_json::array();
  out.push_back(number(score.logprob));
  out.push_back(score.token_id);
  out.push_back(with_text ? ordered_json(score.text) : ordered_json());
  return out;
}

// One entry per position: null where nothing was predicted, else the triples.
ordered_json alternatives(const std::vector<PositionScores>& scores, std::vector<TokenScore> PositionScores::*list,
                          bool with_text) {
  auto out = ordered_json::array();
  for (const auto& position : scores) {
    if (!position.chosen.logprob) {
      out.push_back(nullptr);
      continue;
    }
    auto entry = ordered_json::array();
    for (const auto& score : position.*list) entry.push_back(triple(score, with_text));
    out.push_back(std::move(entry));
  }
  return out;
}

void add_scores(ordered_json& meta, const std::string& side, const std::vector<PositionScores>& scores,
                const NativeFormat& format) {
  auto tokens = ordered_json::array();
  for (const auto& position : scores) tokens.push_back(triple(position.chosen, format.text_in_logprobs));
  meta[side + "_token_logprobs"] = std::move(tokens);
  if (format.top_logprobs) {
    meta[side + "_top_logprobs"] = alternatives(scores, &PositionScores::top, format.text_in_logprobs);
  }
  if (format.requested_logprobs) {
    meta[side + "_token_ids_logprobs"] = alternatives(scores, &PositionScores::requested, format.text_in_logprobs);
  }
}

ordered_json matched_token(const Finish& finish) {
  return finish.matched_token < 0 ? ordered_json() : ordered_json(finish.matched_token);
}

ordered_json matched_stop(const Finish& finish) {
  if (finish.calls) return nullptr;
  if (finish.kind == Finish::Kind::kStopToken) return matched_token(finish);
  if (finish.kind == Finish::Kind::kStopString) return finish.matched_string;
  return nullptr;
}

ordered_json head(const OpenAiFormat& format, std::string_view object) {
  return {{"id", format.id}, {"object", object}, {"created", format.created}, {"model", format.model}};
}

ordered_json usage_or_null(const Usage* usage, const OpenAiFormat& format) {
  return usage == nullptr ? ordered_json() : usage_json(*usage, format.report_cached);
}

// {"<text>": logprob}; of tokens with one text the last stands. The object would look each member up one by one.
ordered_json scores_by_text(const std::vector<TokenScore>& scores) {
  auto out = ordered_json::object();
  auto& members = out.get_ref<ordered_json::object_t&>();
  std::unordered_map<std::string_view, size_t> places;
  for (const auto& score : scores) {
    const auto [place, is_new] = places.emplace(score.text, members.size());
    if (is_new) {
      members.emplace_back(score.text, number(score.logprob));
    } else {
      std::next(members.begin(), static_cast<ptrdiff_t>(place->second))->second = number(score.logprob);
    }
  }
  return out;
}

ordered_json byte_list(std::string_view bytes) {
  auto out = ordered_json::array();
  for (const char c : bytes) out.push_back(static_cast<unsigned char>(c));
  return out;
}

// Characters that begin in these bytes; the pieces of a split character count once together.
int64_t characters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

ordered_json text_or_null(const std::string& text) { return text.empty() ? ordered_json() : ordered_json(text); }

ordered_json call_json(const ToolCall& call) {
  ordered_json out = {{"index", call.index}};
  auto function = ordered_json::object();
  if (!call.name.empty()) {
    out["id"] = call.id;
    out["type"] = "function";
    function["name"] = call.name;
  }
  function["arguments"] = call.arguments;
  out["function"] = std::move(function);
  return out;
}

ordered_json calls_or_null(const std::vector<ToolCall>& calls) {
  if (calls.empty()) return nullptr;
  auto out = ordered_json::array();
  for (const auto& call : calls) out.push_back(call_json(call));
  return out;
}

// What SGLang adds to OpenAI's answers. The one cache there is lies in the memory of the device.
ordered_json extension(const OpenAiFormat& format, const Usage& usage, const Sample& first) {
  ordered_json out = ordered_json::object();
  if (format.routed_experts) out["routed_experts"] = routed_experts_text(first);
  if (format.cached_details) out["cached_tokens_details"] = {{"device", usage.cached_tokens}, {"host", 0}};
  return out;
}

ordered_json rows_of(std::span<const float> values) {
  auto out = ordered_json::array();
  out.get_ref<ordered_json::array_t&>().reserve(values.size());
  for (const float value : values) out.push_back(static_cast<double>(value));
  return out;
}

// The prompt's positions in one list, then one list for each output token.
ordered_json hidden_states(const Sample& sample, int64_t hidden_size) {
  const auto width = static_cast<size_t>(hidden_size), prompt = static_cast<size_t>(sample.prompt_tokens);
  const std::span<const float> all = sample.hidden_states;
  auto out = ordered_json::array();
  if (!all.empty()) out.push_back(ordered_json::array());
  for (size_t i = 0; (i + 1) * width <= all.size(); ++i) {
    (i < prompt ? out[0] : out).push_back(rows_of(all.subspan(i * width, width)));
  }
  return out;
}

// Gateways look for the usage at the end: what may be long comes before it.
std::string whole_answer(const OpenAiFormat& format, std::string_view object, ordered_json choices, const Usage& usage,
                         const Sample& first) {
  auto out = head(format, object);
  out["choices"] = std::move(choices);
  if (!format.chat_prompt_ids.empty()) out["prompt_token_ids"] = format.chat_prompt_ids;
  if (format.has_extension()) out["sglext"] = extension(format, usage, first);
  out["usage"] = usage_json(usage, format.report_cached);
  out["metadata"] = {{"weight_version", format.weight_version}};
  return dump(out);
}

}  // namespace

std::string routed_experts_text(const Sample& sample) {
  const auto& experts = sample.routed_experts;
  return base64_of({reinterpret_cast<const char*>(experts.data()), experts.size() * sizeof(int32_t)});
}

ordered_json last_hidden_state(const Sample& sample, int64_t hidden_size) {
  const auto width = static_cast<size_t>(hidden_size);
  const std::span<const float> all = sample.hidden_states;
  if (all.size() <= static_cast<size_t>(sample.prompt_tokens) * width) return ordered_json::array();
  return rows_of(all.last(width));
}

ordered_json native_finish_reason(const Finish& finish) {
  switch (finish.kind) {
    case Finish::Kind::kNone:
      return nullptr;
    case Finish::Kind::kStopToken:
      return {{"type", "stop"}, {"matched", matched_token(finish)}};
    case Finish::Kind::kStopString:
      return {{"type", "stop"}, {"matched", finish.matched_string}};
    case Finish::Kind::kLength:
      return {{"type", "length"}, {"length", finish.length}};
    case Finish::Kind::kAbort:
      break;
  }
  ordered_json out = {{"type", "abort"}, {"message", finish.message}};
  out["status_code"] = finish.status == 0 ? ordered_json() : ordered_json(finish.status);
  const char* kind = finish.status == 400   ? "BadRequestError"
                     : finish.status == 503 ? "ServiceUnavailable"
                     : finish.status == 500 ? "InternalServerError"
                                            : nullptr;
  out["err_type"] = kind == nullptr ? ordered_json() : ordered_json(kind);
  if (!finish.reason.empty()) out["reason"] = finish.reason;
  return out;
}

void add_times(ordered_json& meta, const SampleTimes& times) {
  const auto add = [&](const char* name, const std::optional<double>& value) {
    meta[name] = value ? ordered_json(*value) : ordered_json();
  };
  add("queue_time", times.queue);
  add("forward_entry_time", times.forward_entry);
  add("prefill_finished_time", times.prefill_finished);
  add("prefill_waiting_latency", times.queue);
  add("prefill_launch_latency", times.prefill);
  add("request_received_ts", times.request_received);
  add("request_finished_ts", times.request_finished);
  add("inference_time", times.inference);
  add("decode_throughput", times.decode_throughput);
}

ordered_json native_answer(const Sample& sample, const NativeFormat& format, size_t first_id) {
  ordered_json meta = {{"id", sample.rid},
                       {"finish_reason", native_finish_reason(sample.finish)},
                       {"weight_version", format.weight_version},
                       {"total_retractions", sample.retractions}};
  if (format.logprobs) {
    add_scores(meta, "input", sample.input_scores, format);
    add_scores(meta, "output", sample.output_scores, format);
  }
  meta["dp_rank"] = format.data_parallel && sample.dp_rank ? ordered_json(*sample.dp_rank) : ordered_json();
  if (sample.e2e_latency) {
    meta["e2e_latency"] = *sample.e2e_latency;
    meta["response_sent_to_client_ts"] = sample.answered;
  }
  if (sample.times) add_times(meta, *sample.times);
  if (sample.finish.kind != Finish::Kind::kNone) {
    if (format.hidden_size > 0) meta["hidden_states"] = hidden_states(sample, format.hidden_size);
    if (format.routed_experts) meta["routed_experts"] = routed_experts_text(sample);
  }
  // Last, as in whole_answer().
  meta["prompt_tokens"] = sample.prompt_tokens;
  meta["completion_tokens"] = sample.completion_tokens;
  meta["cached_tokens"] = sample.cached_tokens;
  auto ids = ordered_json::array();
  for (size_t i = first_id; i < sample.output_ids.size(); ++i) ids.push_back(sample.output_ids[i]);
  ordered_json out = {{"text", sample.text}};
  out["output_ids"] = std::move(ids);
  out["meta_info"] = std::move(meta);
  return out;
}

ordered_json usage_json(const Usage& usage, bool report_cached) {
  ordered_json out = {{"prompt_tokens", usage.prompt_tokens},
                      {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
                      {"completion_tokens", usage.completion_tokens}};
  out["prompt_tokens_details"] =
      report_cached && usage.cached_tokens > 0 ? ordered_json{{"cached_tokens", usage.cached_tokens}} : ordered_json();
  out["reasoning_tokens"] = usage.reasoning_tokens;
  return out;
}

ordered_json openai_finish_reason(const Finish& finish) {
  switch (finish.kind) {
    case Finish::Kind::kNone:
      return nullptr;
    case Finish::Kind::kStopToken:
    case Finish::Kind::kStopString:
      return finish.calls ? "tool_calls" : "stop";
    case Finish::Kind::kLength:
      return "length";
    case Finish::Kind::kAbort:
      return "abort";
  }
  return nullptr;
}

ordered_json completion_logprobs(const std::vector<PositionScores>& scores, size_t first, int64_t& offset) {
  auto offsets = ordered_json::array();
  auto values = ordered_json::array();
  auto tokens = ordered_json::array();
  auto tops = ordered_json::array();
  for (size_t i = first; i < scores.size(); ++i) {
    const auto& position = scores[i];
    offsets.push_back(offset);
    offset += characters(position.chosen.bytes);
    values.push_back(number(position.chosen.logprob));
    tokens.push_back(position.chosen.text);
    tops.push_back(position.top.empty() ? ordered_json() : scores_by_text(position.top));
  }
  ordered_json out = ordered_json::object();
  out["text_offset"] = std::move(offsets);
  out["token_logprobs"] = std::move(values);
  out["tokens"] = std::move(tokens);
  out["top_logprobs"] = std::move(tops);
  return out;
}

ordered_json chat_logprobs(const std::vector<PositionScores>& scores, size_t first) {
  const auto entry = [](const TokenScore& score) {
    ordered_json out = {{"token", score.text}};
    out["bytes"] = byte_list(score.bytes);
    out["logprob"] = number(score.logprob);
    return out;
  };
  auto content = ordered_json::array();
  for (size_t i = first; i < scores.size(); ++i) {
    auto token = entry(scores[i].chosen);
    auto top = ordered_json::array();
    for (const auto& score : scores[i].top) top.push_back(entry(score));
    token["top_logprobs"] = std::move(top);
    content.push_back(std::move(token));
  }
  auto out = ordered_json::object();
  out["content"] = std::move(content);
  return out;
}

ordered_json completion_choice(size_t index, std::string_view text, ordered_json logprobs, const Finish& finish) {
  ordered_json out = {{"index", index}, {"text", text}};
  out["logprobs"] = std::move(logprobs);
  out["finish_reason"] = openai_finish_reason(finish);
  out["matched_stop"] = matched_stop(finish);
  return out;
}

std::string completion_answer(const OpenAiFormat& format, ordered_json choices, const Usage& usage,
                              const Sample& first) {
  return whole_answer(format, kCompletionObject, std::move(choices), usage, first);
}

ordered_json chat_choice(size_t index, const ChatParts& parts, ordered_json logprobs, const Finish& finish) {
  ordered_json out = {{"index", index}};
  ordered_json message = {{"role", "assistant"}};
  const bool nothing_else = parts.reasoning.empty() && parts.calls.empty();
  message["content"] = nothing_else ? ordered_json(parts.content) : text_or_null(parts.content);
  message["reasoning_content"] = text_or_null(parts.reasoning);
  message["tool_calls"] = calls_or_null(parts.calls);
  out["message"] = std::move(message);
  out["logprobs"] = std::move(logprobs);
  out["finish_reason"] = openai_finish_reason(finish);
  out["matched_stop"] = matched_stop(finish);
  return out;
}

std::string chat_answer(const OpenAiFormat& format, ordered_json choices, const Usage& usage, const Sample& first) {
  return whole_answer(format, "chat.completion", std::move(choices), usage, first);
}

std::string completion_chunk(const OpenAiFormat& format, ordered_json choice, const Usage* usage) {
  auto out = head(format, kCompletionObject);
  out["choices"] = ordered_json::array();
  out["choices"].push_back(std::move(choice));
  out["usage"] = usage_or_null(usage, format);
  return dump(out);
}

std::string chat_chunk(const OpenAiFormat& format, size_t index, ChatDelta kind, const ChatParts& parts,
                       ordered_json logprobs, const Finish& finish, const Usage* usage,
                       std::span<const int32_t> token_ids) {
  auto out = head(format, kChunkObject);
  if (kind == ChatDelta::kRole && !format.chat_prompt_ids.empty()) out["prompt_token_ids"] = format.chat_prompt_ids;
  ordered_json choice = {{"index", index}};
  auto delta = ordered_json::object();
  delta["role"] = kind == ChatDelta::kRole ? ordered_json("assistant") : ordered_json();
  const bool other = kind == ChatDelta::kFinish || !parts.reasoning.empty() || !parts.calls.empty();
  delta["content"] = other ? text_or_null(parts.content) : ordered_json(parts.content);
  delta["reasoning_content"] = text_or_null(parts.reasoning);
  delta["tool_calls"] = calls_or_null(parts.calls);
  choice["delta"] = std::move(delta);
  choice["logprobs"] = std::move(logprobs);
  choice["finish_reason"] = kind == ChatDelta::kFinish ? openai_finish_reason(finish) : ordered_json();
  choice["matched_stop"] = kind == ChatDelta::kFinish ? matched_stop(finish) : ordered_json();
  if (format.token_ids) choice["token_ids"] = token_ids;
  out["choices"] = ordered_json::array();
  out["choices"].push_back(std::move(choice));
  out["usage"] = usage_or_null(usage, format);
  return dump(out);
}

std::string hidden_state_chunk(const OpenAiFormat& format, size_t index, bool chat, const Sample& sample) {
  auto out = head(format, chat ? kChunkObject : kCompletionObject);
  ordered_json choice = {{"index", index}};
  if (!chat) choice["text"] = "";
  (chat ? choice["delta"] : choice)["hidden_states"] = last_hidden_state(sample, format.hidden_size);
  choice["finish_reason"] = nullptr;
  out["choices"] = ordered_json::array();
  out["choices"].push_back(std::move(choice));
  return dump(out);
}

std::string extension_chunk(const OpenAiFormat& format, std::string_view object, const Usage& usage,
                            const Sample& first) {
  auto out = head(format, object);
  out["choices"] = ordered_json::array();
  out["usage"] = nullptr;
  out["sglext"] = extension(format, usage, first);
  return dump(out);
}

std::string usage_chunk(const OpenAiFormat& format, std::string_view object, const Usage& usage) {
  auto out = head(format, object);
  out["choices"] = ordered_json::array();
  out["usage"] = usage_json(usage, format.report_cached);
  return dump(out);
}

}  // namespace sluice::protocol
