#include "protocol/responses_body.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "protocol/fields.h"
#include "protocol/generate_body.h"

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

// Kept with the response, as metadata is.
constexpr size_t kMaxUserBytes = 4096;

// The text of an item's content: a string, or parts of text.
Result<std::string> text_of(const ordered_json& content, size_t index) {
  const auto wrong = [index](std::string_view what) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("input[{}].content {}", index, what)};
  };
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return wrong("must be a string or a list of text parts");
  std::string out;
  for (const auto& part : content) {
    const auto type = part.is_object() ? part.value("type", ordered_json()) : ordered_json();
    if (type != "input_text" && type != "output_text" && type != "text") {
      return wrong(fmt::format("holds a part of type {}: only text is served", dump(type)));
    }
    const auto text = part.value("text", ordered_json());
    if (!text.is_string()) return wrong("holds a text part whose text is no string");
    out += text.get<std::string>();
  }
  return out;
}

std::string message(std::string_view role, std::string_view content) {
  return dump(ordered_json{{"role", role}, {"content", content}});
}

// Members of a JSON list.
Result<std::string> messages_of(Fields& fields) {
  const auto* input = fields.find("input");
  if (input != nullptr && input->is_string()) {
    return message("user", input->get_ref<const std::string&>());
  }
  std::string out;
  if (input == nullptr || !input->is_array() || input->empty()) {
    return Error{ErrorCode::kInvalidArgument, "input must be a string or a list of messages"};
  }
  for (size_t i = 0; i < input->size(); ++i) {
    const auto& item = (*input)[i];
    const auto type = item.is_object() ? item.value("type", ordered_json("message")) : ordered_json();
    if (type != "message") {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("input[{}] is of type {}: only messages are served", i, dump(type))};
    }
    const auto role = item.value("role", ordered_json());
    if (!role.is_string()) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("input[{}].role must be a string", i)};
    }
    SLUICE_TRY(auto text, text_of(item.value("content", ordered_json()), i));
    // Developers speak where systems did; templates know the older name.
    const auto& spoken = role.get_ref<const std::string&>();
    if (!out.empty()) out += ',';
    out += message(spoken == "developer" ? "system" : spoken, text);
  }
  return out;
}

// text.format has the members of a chat's response_format.json_schema at its own level.
void read_format(Fields& fields, ordered_json& chat, ordered_json& echo) {
  ordered_json format = {{"type", "text"}};
  const auto* text = fields.find("text");
  if (text != nullptr && !text->is_object()) return fields.fail("text must be an object");
  if (text != nullptr && text->contains("format") && !(*text)["format"].is_null()) format = (*text)["format"];
  if (!format.is_object()) return fields.fail("text.format must be an object");
  const auto type = format.value("type", ordered_json());
  // What else these hold means nothing, and would be kept with the response.
  echo["text"]["format"] = type == "text" || type == "json_object" ? ordered_json{{"type", type}} : format;
  if (type != "json_schema") {
    chat["response_format"] = std::move(format);
    return;
  }
  auto schema = format;
  schema.erase("type");
  chat["response_format"] = {{"type", "json_schema"}};
  chat["response_format"]["json_schema"] = std::move(schema);
}

size_t characters(std::string_view utf8) {
  return static_cast<size_t>(std::ranges::count_if(utf8, [](unsigned char c) { return (c & 0xc0) != 0x80; }));
}

// In OpenAI's bounds: it is kept with the response, in memory that all clients share.
ordered_json read_metadata(Fields& fields) {
  constexpr size_t kPairs = 16, kKey = 64, kValue = 512;
  auto out = ordered_json::object();
  const auto* metadata = fields.find("metadata");
  if (metadata == nullptr) return out;
  if (!metadata->is_object() || metadata->size() > kPairs) {
    fields.fail(fmt::format(
        "metadata must be an object of at most {} pairs, got {}", kPairs,
        metadata->is_object() ? fmt::format("{} pairs", metadata->size()) : std::string(metadata->type_name())));
    return out;
  }
  for (const auto& [key, value] : metadata->items()) {
    const std::string shown = key.substr(0, kKey);
    if (const size_t length = characters(key); length > kKey) {
      fields.fail(fmt::format("metadata has a key of {} characters, {} at most: {}...", length, kKey, shown));
    } else if (!value.is_string()) {
      fields.fail(fmt::format("metadata.{} must be a string, got {}", shown, value.type_name()));
    } else if (const size_t of_value = characters(value.get_ref<const std::string&>()); of_value > kValue) {
      fields.fail(fmt::format("metadata.{} must have at most {} characters, got {}", shown, kValue, of_value));
    } else {
      out[key] = value;
    }
  }
  return out;
}

// What asks for an answer that is fetched later, or goes on from one.
void read_storing(Fields& fields, ResponsesBody& out) {
  out.stream = fields.boolean("stream", false);
  out.store = fields.boolean("store", true);
  out.background = fields.boolean("background", false);
  out.previous = fields.text("previous_response_id", "", kMaxResponseIdBytes);
  if (!out.previous.empty() && !out.previous.starts_with(kResponsePrefix)) {
    fields.fail(fmt::format("previous_response_id must begin with \"{}\"", kResponsePrefix));
  }
  if (out.background && out.stream) {
    fields.fail("background is for answers that are fetched from /v1/responses/{id}: it excludes stream");
  }
  if (out.background && !out.store) fields.fail("background needs store to be true: the answer is fetched later");
}

// The same digits as the response's.
std::string message_id(const ResponseState& state) { return "msg_" + state.id.substr(kResponsePrefix.size()); }

// OpenAI's names of what goes wrong.
std::string_view failure_code(int status) { return status == 400 ? "invalid_prompt" : "server_error"; }

}  // namespace

std::string_view to_string(ResponseStatus status) {
  switch (status) {
    case ResponseStatus::kQueued:
      return "queued";
    case ResponseStatus::kInProgress:
      return "in_progress";
    case ResponseStatus::kCompleted:
      return "completed";
    case ResponseStatus::kIncomplete:
      return "incomplete";
    case ResponseStatus::kCancelled:
      return "cancelled";
    case ResponseStatus::kFailed:
      return "failed";
  }
  return "";
}

ResponseStatus ended_status(const Finish& finish) {
  switch (finish.kind) {
    case Finish::Kind::kLength:
      return ResponseStatus::kIncomplete;
    case Finish::Kind::kAbort:
      return ResponseStatus::kCancelled;
    default:
      return ResponseStatus::kCompleted;
  }
}

std::string joined_messages(std::string_view before, std::string_view messages) {
  return fmt::format("{}{}{}", before, before.empty() || messages.empty() ? "" : ",", messages);
}

std::string with_answer(std::string_view messages, std::string_view text) {
  return joined_messages(messages, message("assistant", text));
}

std::string chat_of(const ResponsesBody& body, std::string_view before) {
  const std::string_view rest = std::string_view(body.chat).substr(1);  // without its brace
  return fmt::format(R"({{"messages":[{}]{}{})",
                     joined_messages(body.instructions, joined_messages(before, body.messages)), rest == "}" ? "" : ",",
                     rest);
}

Result<ResponsesBody> parse_responses_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  ResponsesBody out;
  auto chat = ordered_json::object();
  auto echo = ordered_json::object();
  if (const auto instructions = fields.text("instructions"); !instructions.empty()) {
    out.instructions = message("system", instructions);
  }
  SLUICE_TRY(out.messages, messages_of(fields));
  refuse_out_of_scope(fields);
  fields.refuse("n", "a response is one answer", "1");
  for (const char* name : {"return_hidden_states", "return_routed_experts", "logprobs", "top_logprobs"}) {
    fields.refuse(name, "it is served by /v1/chat/completions",
                  name == std::string_view("top_logprobs") ? "0" : "false");
  }
  fields.refuse("conversation", "conversations are not stored; go on from one with previous_response_id");
  fields.refuse("tools", "tools are served by /v1/chat/completions");
  fields.refuse("prompt", "prompt templates are not stored");
  fields.text("user", "", kMaxUserBytes);
  read_storing(fields, out);
  if (const auto* reasoning = fields.find("reasoning"); reasoning != nullptr && reasoning->is_object()) {
    if (reasoning->contains("effort")) chat["reasoning_effort"] = (*reasoning)["effort"];
  }
  // Same name and meaning in both.
  for (const char* name : {"model",
                           "temperature",
                           "top_p",
                           "user",
                           "rid",
                           "extra_key",
                           "cache_salt",
                           "priority",
                           "seed",
                           "stop",
                           "top_k",
                           "min_p",
                           "frequency_penalty",
                           "presence_penalty",
                           "repetition_penalty",
                           "ignore_eos",
                           "min_tokens",
                           "stop_token_ids",
                           "stop_regex",
                           "logit_bias",
                           "no_stop_trim",
                           "skip_special_tokens",
                           "custom_params",
                           "regex",
                           "ebnf",
                           "json_schema",
                           "structural_tag",
                           "routing_key",
                           "custom_labels",
                           "separate_reasoning",
                           "routed_dp_rank",
                           "data_parallel_rank",
                           "chat_template_kwargs"}) {
    if (const auto* value = fields.find(name)) chat[name] = *value;
  }
  if (const auto length = fields.integer("max_output_tokens", {.min = 1, .max = INT32_MAX})) {
    chat["max_completion_tokens"] = *length;
  }
  for (const char* name : {"instructions", "max_output_tokens", "temperature", "top_p", "user"}) {
    const auto* value = fields.find(name);
    echo[name] = value == nullptr ? ordered_json() : *value;
  }
  echo["previous_response_id"] = out.previous.empty() ? ordered_json() : ordered_json(out.previous);
  echo["background"] = out.background;
  echo["metadata"] = read_metadata(fields);
  read_format(fields, chat, echo);
  if (!fields.ok()) return fields.error();
  out.chat = dump(chat);
  out.echo = dump(echo);
  return out;
}

ordered_json response_object(const ResponseState& state) {
  ordered_json out = {{"id", state.id}, {"object", "response"}, {"created_at", state.created}};
  const bool is_short = state.status == ResponseStatus::kIncomplete;
  const bool cut = is_short || state.status == ResponseStatus::kCancelled;
  const bool failed = state.status == ResponseStatus::kFailed;
  const bool spoke =
      has_ended(state.status) && !failed && (state.status != ResponseStatus::kCancelled || !state.text.empty());
  out["status"] = to_string(state.status);
  out["error"] =
      failed ? ordered_json{{"code", failure_code(state.failed_with)}, {"message", state.failure}} : ordered_json();
  out["incomplete_details"] = is_short ? ordered_json{{"reason", "max_output_tokens"}} : ordered_json();
  out["model"] = state.model;
  auto output = ordered_json::array();
  if (spoke) {
    ordered_json part = {{"type", "output_text"}, {"text", state.text}};
    part["annotations"] = ordered_json::array();
    part["logprobs"] = ordered_json::array();
    ordered_json item = {{"type", "message"}, {"id", message_id(state)}};
    item["status"] = cut ? "incomplete" : "completed";
    item["role"] = "assistant";
    item["content"] = ordered_json::array({std::move(part)});
    output.push_back(std::move(item));
  }
  out["output"] = std::move(output);
  out["store"] = state.stored;
  out["parallel_tool_calls"] = true;
  out["reasoning"] = {{"effort", nullptr}, {"summary", nullptr}};
  out["tool_choice"] = "auto";
  out["tools"] = ordered_json::array();
  out["truncation"] = "disabled";
  out["usage"] = nullptr;
  if (const auto& usage = state.usage) {
    out["usage"] = {{"input_tokens", usage->prompt_tokens},
                    {"input_tokens_details", {{"cached_tokens", usage->cached_tokens}}},
                    {"output_tokens", usage->completion_tokens},
                    {"output_tokens_details", {{"reasoning_tokens", usage->reasoning_tokens}}},
                    {"total_tokens", usage->prompt_tokens + usage->completion_tokens}};
  }
  const auto echo = ordered_json::parse(state.echo, nullptr, /*allow_exceptions=*/false);
  if (echo.is_object()) out.update(echo);
  return out;
}

std::string responses_error_body(int status, std::string_view message, std::string_view reason,
                                 std::string_view param) {
  const char* type = status < 500 ? "invalid_request_error" : "server_error";
  ordered_json out = ordered_json::object();
  out["error"] = {{"message", message}, {"type", type}, {"param", nullptr}, {"code", status}};
  if (!param.empty()) out["error"]["param"] = param;
  if (!reason.empty()) out["error"]["reason"] = reason;
  return dump(out);
}

ordered_json ResponseEvents::event(std::string_view type) { return {{"type", type}, {"sequence_number", number_++}}; }

ordered_json ResponseEvents::part(bool with_text) const {
  ordered_json out = {{"type", "output_text"}, {"text", with_text ? state_.text : ""}};
  out["annotations"] = ordered_json::array();
  out["logprobs"] = ordered_json::array();
  return out;
}

ordered_json ResponseEvents::item(std::string_view status, bool with_text) const {
  ordered_json out = {{"type", "message"}, {"id", message_id(state_)}, {"status", status}, {"role", "assistant"}};
  out["content"] = ordered_json::array();
  if (with_text) out["content"].push_back(part(true));
  return out;
}

std::vector<std::string> ResponseEvents::begin() {
  std::vector<std::string> out;
  for (const char* type : {"response.created", "response.in_progress"}) {
    auto whole = event(type);
    whole["response"] = response_object(state_);
    out.push_back(dump(whole));
  }
  auto added = event("response.output_item.added");
  added["output_index"] = 0;
  added["item"] = item("in_progress", false);
  out.push_back(dump(added));
  auto began = event("response.content_part.added");
  began["item_id"] = message_id(state_);
  began["output_index"] = 0;
  began["content_index"] = 0;
  began["part"] = part(false);
  out.push_back(dump(began));
  return out;
}

std::string ResponseEvents::delta(std::string_view text) {
  auto out = event("response.output_text.delta");
  out["item_id"] = message_id(state_);
  out["output_index"] = 0;
  out["content_index"] = 0;
  out["delta"] = text;
  out["logprobs"] = ordered_json::array();
  return dump(out);
}

std::vector<std::string> ResponseEvents::end() {
  std::vector<std::string> out;
  auto text = event("response.output_text.done");
  text["item_id"] = message_id(state_);
  text["output_index"] = 0;
  text["content_index"] = 0;
  text["text"] = state_.text;
  text["logprobs"] = ordered_json::array();
  out.push_back(dump(text));
  auto ended = event("response.content_part.done");
  ended["item_id"] = message_id(state_);
  ended["output_index"] = 0;
  ended["content_index"] = 0;
  ended["part"] = part(true);
  out.push_back(dump(ended));
  // Whoever goes by the event alone must not take what was cancelled for whole.
  const bool cut = state_.status == ResponseStatus::kIncomplete || state_.status == ResponseStatus::kCancelled;
  auto done = event("response.output_item.done");
  done["output_index"] = 0;
  done["item"] = item(cut ? "incomplete" : "completed", true);
  out.push_back(dump(done));
  auto whole = event(cut ? "response.incomplete" : "response.completed");
  whole["response"] = response_object(state_);
  out.push_back(dump(whole));
  return out;
}

}  // namespace sluice::protocol
