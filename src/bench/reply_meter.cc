#include "bench/reply_meter.h"

#include <simdjson.h>

#include <nlohmann/json.hpp>

namespace sluice::bench {
namespace {

namespace od = simdjson::ondemand;

constexpr size_t kMaxErrorText = 300;

float float_seconds(Duration d) { return static_cast<float>(seconds(d)); }

std::optional<int64_t> as_integer(od::value value) {
  int64_t number = 0;
  if (value.get_int64().get(number) != simdjson::SUCCESS) return std::nullopt;
  return number;
}

bool is_null(od::value value) {
  od::json_type type;
  return value.type().get(type) == simdjson::SUCCESS && type == od::json_type::null;
}

// Notes a string; null and the empty string are no text.
void take_string(od::value value, ReplyEvent& event) {
  od::json_type type;
  if (value.type().get(type) != simdjson::SUCCESS || type != od::json_type::string) return;
  const std::string_view raw = value.raw_json_token();
  if (raw.size() < 2 || raw[1] == '"') return;
  event.has_text = true;
  event.raw_text = raw;
}

// {"type": "stop"} of /generate, "stop" of OpenAI.
void take_finish_reason(od::value value, ReplyEvent& event) {
  od::json_type type;
  if (value.type().get(type) != simdjson::SUCCESS || type == od::json_type::null) return;
  event.finished = true;
  std::string_view text;
  if (type == od::json_type::string) {
    if (value.get_string().get(text) == simdjson::SUCCESS && text == "abort") event.error = "the server aborted it";
    return;
  }
  od::object object;
  if (value.get_object().get(object) != simdjson::SUCCESS) return;
  bool aborted = false;
  std::string message;
  for (auto field : object) {
    od::raw_json_string key;
    od::value member;
    if (field.key().get(key) != simdjson::SUCCESS || field.value().get(member) != simdjson::SUCCESS) return;
    if (key == "type" && member.get_string().get(text) == simdjson::SUCCESS) aborted = text == "abort";
    if (key == "message" && member.get_string().get(text) == simdjson::SUCCESS) message = text;
  }
  if (aborted) event.error = "the server aborted it" + (message.empty() ? "" : ": " + message);
}

void take_id(od::value value, ReplyEvent& event) {
  std::string_view id;
  if (value.get_string().get(id) == simdjson::SUCCESS) event.id = id;
}

void take_usage(od::value value, ReplyEvent& event) {
  od::object object;
  if (is_null(value) || value.get_object().get(object) != simdjson::SUCCESS) return;
  for (auto field : object) {
    od::raw_json_string key;
    od::value member;
    if (field.key().get(key) != simdjson::SUCCESS || field.value().get(member) != simdjson::SUCCESS) return;
    if (key == "prompt_tokens") {
      event.prompt_tokens = as_integer(member);
    } else if (key == "completion_tokens") {
      event.completion_tokens = as_integer(member);
    } else if (key == "cached_tokens") {
      event.cached_tokens = as_integer(member);
    } else if (key == "id") {
      take_id(member, event);
    } else if (key == "finish_reason") {
      take_finish_reason(member, event);
    } else if (key == "prompt_tokens_details") {
      take_usage(member, event);
    }
  }
}

// A choice, its message or its delta.
void take_choice(od::value value, ReplyEvent& event) {
  od::object object;
  if (value.get_object().get(object) != simdjson::SUCCESS) return;
  for (auto field : object) {
    od::raw_json_string key;
    od::value member;
    if (field.key().get(key) != simdjson::SUCCESS || field.value().get(member) != simdjson::SUCCESS) return;
    if (key == "text" || key == "content" || key == "reasoning_content") {
      take_string(member, event);
    } else if ((key == "delta" || key == "message") && !is_null(member)) {
      take_choice(member, event);
    } else if (key == "finish_reason") {
      take_finish_reason(member, event);
    }
  }
}

void take_error(od::value value, ReplyEvent& event) {
  if (is_null(value)) return;
  std::string_view raw;
  event.error = simdjson::to_json_string(value).get(raw) == simdjson::SUCCESS
                    ? std::string(raw.substr(0, kMaxErrorText))
                    : "an error";
}

void take_member(Api api, od::raw_json_string key, od::value value, ReplyEvent& event) {
  if (key == "error") {
    take_error(value, event);
  } else if (key == "sent_at_ns") {
    event.sent_at_ns = as_integer(value);
  } else if (api == Api::kGenerate) {
    if (key == "text") take_string(value, event);
    if (key == "meta_info") take_usage(value, event);
  } else if (key == "id") {
    take_id(value, event);
  } else if (key == "usage") {
    take_usage(value, event);
  } else if (key == "choices") {
    od::array choices;
    if (value.get_array().get(choices) != simdjson::SUCCESS) return;
    for (auto choice : choices) {
      od::value one;
      if (choice.get(one) == simdjson::SUCCESS) take_choice(one, event);
    }
  }
}

std::string unquoted(std::string_view raw) {
  const auto value = nlohmann::json::parse(raw, nullptr, /*allow_exceptions=*/false);
  return value.is_string() ? value.get<std::string>() : std::string();
}

std::string shortened(std::string_view text) {
  return text.size() <= kMaxErrorText ? std::string(text) : std::string(text.substr(0, kMaxErrorText)) + "...";
}

}  // namespace

Result<ReplyEvent> parse_reply(Api api, std::string_view json) {
  static thread_local od::parser parser;
  // Copied with padding behind it: the parser reads past the end.
  static thread_local std::string padded;
  padded.reserve(json.size() + simdjson::SIMDJSON_PADDING);
  padded.assign(json);
  const auto broken = [&] {
    return Error{ErrorCode::kProtocol, fmt::format("not an answer of the API: {}", shortened(json))};
  };
  od::document document;
  od::object object;
  if (parser.iterate(padded.data(), padded.size(), padded.capacity()).get(document) != simdjson::SUCCESS ||
      document.get_object().get(object) != simdjson::SUCCESS) {
    return broken();
  }
  ReplyEvent event;
  for (auto field : object) {
    od::raw_json_string key;
    od::value value;
    if (field.key().get(key) != simdjson::SUCCESS || field.value().get(value) != simdjson::SUCCESS) return broken();
    take_member(api, key, value, event);
  }
  return event;
}

void ReplyMeter::feed(std::string_view bytes, TimePoint now) {
  if (!options_.stream) {
    body_.append(bytes);
    return;
  }
  const bool fits = sse_.feed(bytes, [&](std::string_view data) { on_event(data, now); });
  if (!fits && seen_.error.empty()) seen_.error = "an event of the stream is too long";
}

void ReplyMeter::on_event(std::string_view data, TimePoint now) {
  last_event_ = now;
  if (data == "[DONE]") {
    done_ = true;
    return;
  }
  const auto event = parse_reply(options_.api, data);
  if (!event.ok()) {
    if (seen_.error.empty()) seen_.error = event.error().message;
    return;
  }
  take(*event, now);
}

void ReplyMeter::take(const ReplyEvent& event, TimePoint now) {
  if (!event.error.empty() && seen_.error.empty()) seen_.error = shortened(event.error);
  if (event.prompt_tokens) {
    seen_.prompt_len = *event.prompt_tokens;
    seen_.prompt_len_reported = true;
  }
  if (event.completion_tokens) seen_.output_len = event.completion_tokens;
  if (event.cached_tokens) seen_.cached_tokens = event.cached_tokens;
  if (seen_.answer_id.empty()) seen_.answer_id = event.id;
  if (event.sent_at_ns) {
    seen_.chunk_delays.push_back(float_seconds(now.time_since_epoch() - Duration(*event.sent_at_ns)));
  }
  if (event.has_text) take_text(event, now);
}

void ReplyMeter::take_text(const ReplyEvent& event, TimePoint now) {
  if (options_.keep_text) {
    if (options_.api == Api::kGenerate) {
      raw_text_.assign(event.raw_text);
    } else {
      seen_.text += unquoted(event.raw_text);
    }
  }
  // Where an event does not say how many tokens there are by now, it counts as one.
  const int64_t tokens = event.completion_tokens.value_or(last_tokens_ + 1);
  if (!seen_.ttft) {
    seen_.ttft = now - due_;
  } else {
    const int64_t fresh = tokens - last_tokens_;
    if (fresh <= 0) return;
    const float each = float_seconds(now - last_text_) / static_cast<float>(fresh);
    seen_.itl.insert(seen_.itl.end(), static_cast<size_t>(fresh), each);
  }
  last_text_ = now;
  last_tokens_ = tokens;
}

void ReplyMeter::finish(TimePoint now, Outcome& outcome) {
  if (!options_.stream) {
    last_event_ = now;
    const auto event = parse_reply(options_.api, body_);
    if (event.ok()) {
      take(*event, now);
    } else {
      seen_.error = event.error().message;
    }
  } else if (!done_ && seen_.error.empty()) {
    seen_.error = "the stream ended without [DONE]";
  }
  if (options_.keep_text && options_.api == Api::kGenerate) seen_.text = unquoted(raw_text_);
  outcome.error = std::move(seen_.error);
  outcome.ttft = seen_.ttft;
  outcome.latency = last_event_ - due_;
  outcome.itl = std::move(seen_.itl);
  outcome.streamed = options_.stream;
  if (seen_.prompt_len_reported) {
    outcome.prompt_len = seen_.prompt_len;
    outcome.prompt_len_reported = true;
  }
  outcome.output_len = seen_.output_len;
  outcome.cached_tokens = seen_.cached_tokens;
  outcome.answer_id = std::move(seen_.answer_id);
  outcome.text = std::move(seen_.text);
  outcome.chunk_delays = std::move(seen_.chunk_delays);
}

}  // namespace sluice::bench
