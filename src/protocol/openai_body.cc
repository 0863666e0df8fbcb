#include "protocol/openai_body.h"

#include <nlohmann/json.hpp>

#include "protocol/prompts.h"
#include "protocol/tool_choice.h"

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxMessages = 100'000;

std::string read_model(Fields& fields) {
  auto model = fields.text("model", "default");
  if (model.find(':') != std::string::npos) {
    fields.fail(
        fmt::format("model '{}' names a LoRA adapter (base:adapter): adapters are outside the scope of this "
                    "engine",
                    model));
  }
  return model;
}

StreamOptions read_stream(Fields& fields) {
  StreamOptions out;
  out.stream = fields.boolean("stream", false);
  const auto* options = fields.find("stream_options");
  if (options == nullptr) return out;
  if (!options->is_object()) {
    fields.fail("stream_options must be an object");
    return out;
  }
  Fields inner(*options, "stream_options.");
  out.include_usage = inner.boolean("include_usage", false);
  out.continuous_usage_stats = inner.boolean("continuous_usage_stats", false);
  if (!inner.ok()) fields.fail(inner.error().message);
  return out;
}

// {"type": "structural_tag", "format": {...}}, or the older form with structures and triggers, as the newer one.
ordered_json structural_tag(const ordered_json& format) {
  if (!format.contains("structures") || !format.contains("triggers")) return format;
  auto tags = ordered_json::array();
  for (const auto& structure : format["structures"]) {
    if (!structure.is_object()) continue;
    auto content = ordered_json{{"type", "json_schema"}};
    content["json_schema"] = structure.value("schema", ordered_json(true));
    tags.push_back({{"type", "tag"},
                    {"begin", structure.value("begin", ordered_json())},
                    {"content", std::move(content)},
                    {"end", structure.value("end", ordered_json())}});
  }
  auto inner = ordered_json{{"type", "triggered_tags"}, {"triggers", format["triggers"]}};
  inner["tags"] = std::move(tags);
  auto out = ordered_json{{"type", "structural_tag"}};
  out["format"] = std::move(inner);
  return out;
}

void read_format(Fields& fields, Sampling& sampling) {
  const auto* format = fields.find("response_format");
  if (format == nullptr) return;
  const auto type = format->is_object() ? format->value("type", ordered_json()) : ordered_json();
  if (type == "text") return;
  if (type == "json_object") {
    return set_grammar(fields, sampling, {.text = R"({"type": "object"})", .field = "response_format"});
  }
  if (type == "structural_tag") {
    return set_grammar(
        fields, sampling,
        {.kind = Grammar::Kind::kStructuralTag, .text = dump(structural_tag(*format)), .field = "response_format"});
  }
  if (type != "json_schema") {
    return fields.fail("response_format.type must be \"text\", \"json_object\", \"json_schema\" or \"structural_tag\"");
  }
  const auto described = format->value("json_schema", ordered_json());
  const auto schema = described.is_object() ? described.value("schema", ordered_json()) : ordered_json();
  if (!schema.is_object()) return fields.fail("response_format.json_schema.schema must be an object");
  set_grammar(fields, sampling, {.text = dump(schema), .field = "response_format.json_schema.schema"});
}

// The text of a message's content: a string, null, or a list of text parts, which are joined by spaces as the runtime
// does for templates that expect a string.
Result<std::string> flatten(const ordered_json& content, size_t index) {
  if (content.is_null()) return std::string();
  if (content.is_string()) return content.get<std::string>();
  const auto wrong = [index](std::string_view what) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("messages[{}].content {}", index, what)};
  };
  if (!content.is_array()) return wrong("must be a string, null or a list of text parts");
  std::string out;
  for (const auto& part : content) {
    const auto type = part.is_object() ? part.value("type", ordered_json()) : ordered_json();
    if (!type.is_string()) return wrong("holds a part without a type");
    if (type != "text") {
      return wrong(fmt::format("holds a part of type {}: images, video and audio are outside the scope of this engine",
                               dump(type)));
    }
    const auto text = part.value("text", ordered_json());
    if (!text.is_string()) return wrong("holds a text part whose text is no string");
    if (&part != &content.front()) out += ' ';
    out += text.get<std::string>();
  }
  return out;
}

// Clients send a call's arguments as JSON text.
void write_arguments(ordered_json& message, const TemplateHabits& habits) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return;
  for (auto& call : *calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    auto& function = call["function"];
    const auto arguments = function.find("arguments");
    if (arguments == function.end()) continue;
    if (habits.text_arguments) {
      if (!arguments->is_string()) *arguments = dump(*arguments);
    } else if (arguments->is_string()) {
      auto parsed = parse_object(arguments->get<std::string>());
      if (parsed.ok()) *arguments = std::move(*parsed);
    }
  }
}

bool is_all_calls(const ordered_json& message, const ordered_json& content) {
  const auto calls = message.find("tool_calls");
  return content.is_null() && calls != message.end() && calls->is_array() && !calls->empty();
}

Result<ordered_json> read_messages(const ordered_json& messages, const TemplateHabits& habits) {
  const Error wrong{ErrorCode::kInvalidArgument, "messages must be a list of at least one message"};
  if (!messages.is_array() || messages.empty() || messages.size() > kMaxMessages) return wrong;
  ordered_json out = ordered_json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("messages[{}] must be an object", i)};
    }
    ordered_json message = messages[i];
    if (!message.contains("role") || !message["role"].is_string()) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("messages[{}].role must be a string", i)};
    }
    if (habits.developer_is_system && message["role"] == "developer") message["role"] = "system";
    const auto sent = message.value("content", ordered_json());
    SLUICE_TRY(auto content, flatten(sent, i));
    if (const auto call = message.find("function_call"); call != message.end() && !call->is_null()) {
      return Error{ErrorCode::kInvalidArgument,
                   fmt::format("messages[{}].function_call is not supported: it is the older form of tool_calls", i)};
    }
    message["content"] = habits.null_content && is_all_calls(message, sent) ? ordered_json() : ordered_json(content);
    write_arguments(message, habits);
    out.push_back(std::move(message));
  }
  return out;
}

// tools, tool_choice and chat_template_kwargs into the context of the template.
void read_template_fields(Fields& fields, ordered_json& context) {
  const bool offered = read_tool_choice(fields).kind != ToolChoice::Kind::kNone;
  if (const auto* tools = fields.find("tools")) {
    if (!tools->is_array()) fields.fail("tools must be a list");
    for (const auto& tool : *tools) {
      if (!tool.is_object() || !tool.contains("function") || !tool["function"].is_object()) {
        fields.fail("tools must be a list of {\"type\": \"function\", \"function\": {...}}");
      }
    }
    if (fields.ok() && offered && !tools->empty()) context["tools"] = *tools;
  }
  if (const auto effort = fields.text("reasoning_effort"); !effort.empty()) context["reasoning_effort"] = effort;
  if (const auto* more = fields.find("chat_template_kwargs")) {
    if (!more->is_object()) return fields.fail("chat_template_kwargs must be an object");
    if (more->contains("tools")) fields.fail("chat_template_kwargs.tools is not taken: tools is a field of the body");
    for (const auto& [key, value] : more->items()) {
      if (key != "messages" && key != "tools") context[key] = value;  // these were checked
    }
  }
}

// The last assistant message, when it is to be continued: its text is taken out of the messages.
std::string take_final(Fields& fields, ordered_json& messages) {
  if (!fields.boolean("continue_final_message", false)) return "";
  if (messages.back()["role"] != "assistant") {
    fields.fail("continue_final_message needs a last message of role assistant");
    return "";
  }
  const auto& content = messages.back()["content"];
  auto text = content.is_string() ? content.get<std::string>() : std::string();
  messages.erase(messages.size() - 1);
  return text;
}

// What OpenAI had before tools.
void refuse_functions(Fields& fields) {
  fields.refuse("functions", "it is the older form of tools: send them");
  fields.refuse("function_call", "it is the older form of tool_choice: send that", "\"none\"");
}

void read_best_of(Fields& fields, CompletionBody& out) {
  const int64_t n = out.sampling.n;
  out.best_of = fields.integer("best_of", n, {.min = 1, .max = kMaxSamples});
  if (out.best_of < n) {
    fields.fail(
        fmt::format("best_of must be an integer in [n, {}] with n being {}, got {}", kMaxSamples, n, out.best_of));
  }
  if (out.best_of > n && out.stream.stream) {
    fields.fail(
        fmt::format("best_of ({}) above n ({}) cannot be streamed: which samples are the best is known at "
                    "their end",
                    out.best_of, n));
  }
}

}  // namespace

Result<CompletionBody> parse_completion_body(std::string_view text, const SamplingDefaults& defaults) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  CompletionBody out;
  refuse_out_of_scope(fields);
  out.model = read_model(fields);
  out.prompts = read_prompts(fields, "prompt");
  out.sampling = read_openai_sampling(fields, defaults);
  out.sampling.max_new_tokens = fields.integer("max_tokens", 16, {.min = 1, .max = INT32_MAX});
  out.stream = read_stream(fields);
  out.routing = read_routing(fields);
  out.insides = read_insides(fields);
  out.token_ids = fields.boolean("return_token_ids", false);
  out.echo = fields.boolean("echo", false);
  out.cached_details = fields.boolean("return_cached_tokens_details", false);
  out.logprobs = fields.integer("logprobs", {.min = 0, .max = kMaxTopLogprobs});
  out.suffix = fields.text("suffix");
  read_best_of(fields, out);
  fields.text("user");
  read_format(fields, out.sampling);
  check_copies(fields, copied_bytes(out.sampling) * out.prompts.size() * static_cast<size_t>(out.best_of));
  if (!fields.ok()) return fields.error();
  return out;
}

Result<ChatBody> parse_chat_body(std::string_view text, const SamplingDefaults& defaults,
                                 const TemplateHabits& habits) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  ChatBody out;
  refuse_out_of_scope(fields);
  refuse_functions(fields);
  out.model = read_model(fields);
  out.sampling = read_openai_sampling(fields, defaults);
  const IntegerRange lengths{.min = 1, .max = INT32_MAX};
  const auto older = fields.integer("max_tokens", lengths);
  out.sampling.max_new_tokens = fields.integer("max_completion_tokens", lengths);
  if (!out.sampling.max_new_tokens) out.sampling.max_new_tokens = older;
  out.stream = read_stream(fields);
  out.routing = read_routing(fields);
  out.insides = read_insides(fields);
  out.token_ids = fields.boolean("return_token_ids", false);
  out.logprobs = fields.boolean("logprobs", false);
  out.top_logprobs = fields.integer("top_logprobs", 0, {.min = 0, .max = kMaxTopLogprobs});
  if (out.top_logprobs > 0 && !out.logprobs) fields.fail("top_logprobs needs logprobs to be true");
  fields.text("user");
  out.parallel_tool_calls = fields.boolean("parallel_tool_calls", true);
  out.separate_reasoning = fields.boolean("separate_reasoning", true);
  out.stream_reasoning = fields.boolean("stream_reasoning", true);
  out.cached_details = fields.boolean("return_cached_tokens_details", false);
  read_format(fields, out.sampling);
  if (const auto* ids = fields.find("input_ids")) {
    out.input_ids = fields.token_ids("input_ids");
    if (ids->empty()) fields.fail("input_ids must not be empty");
  }
  auto context = ordered_json::object();
  const auto* messages = fields.find("messages");
  if (messages != nullptr || !out.input_ids) {
    auto read = read_messages(messages == nullptr ? ordered_json() : *messages, habits);
    if (!read.ok()) return fields.ok() ? std::move(read).error() : fields.error();
    context["messages"] = std::move(*read);
    out.prefix = take_final(fields, context["messages"]);
  }
  context["add_generation_prompt"] = fields.boolean("add_generation_prompt", true);
  read_template_fields(fields, context);
  if (const auto tools = context.find("tools"); tools != context.end() && tools->is_array()) {
    out.tools = std::make_shared<const ordered_json>(*tools);
  }
  out.template_context = std::make_shared<const ordered_json>(std::move(context));
  if (const auto choice = read_tool_choice(fields); fields.ok() && choice.forced()) {
    const auto schema =
        forced_calls_schema(choice, out.tools ? *out.tools : ordered_json::array(), out.parallel_tool_calls);
    if (!schema.ok()) return schema.error();
    set_grammar(fields, out.sampling, {.text = dump(*schema), .field = "tool_choice"});
    out.forced_calls = true;
  }
  check_copies(fields, copied_bytes(out.sampling) * static_cast<size_t>(out.sampling.n));
  if (!fields.ok()) return fields.error();
  return out;
}

Result<TokenizeBody> parse_tokenize_body(std::string_view text, const TemplateHabits& habits) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  TokenizeBody out;
  out.add_special_tokens = fields.boolean("add_special_tokens", true);
  if (const auto* messages = fields.find("messages")) {
    SLUICE_TRY(auto read, read_messages(*messages, habits));
    auto context = ordered_json::object();
    context["messages"] = std::move(read);
    context["add_generation_prompt"] = fields.boolean("add_generation_prompt", true);
    read_template_fields(fields, context);
    out.template_context = std::make_shared<const ordered_json>(std::move(context));
  } else {
    const auto* prompt = fields.find("prompt");
    if (prompt == nullptr) fields.fail("prompt must be a string or a list of strings");
    out.list = prompt != nullptr && prompt->is_array();
    out.prompts = fields.texts("prompt");
  }
  if (!fields.ok()) return fields.error();
  return out;
}

Result<DetokenizeBody> parse_detokenize_body(std::string_view text) {
  SLUICE_TRY(const auto json, parse_object(text));
  Fields fields(json);
  DetokenizeBody out;
  out.skip_special_tokens = fields.boolean("skip_special_tokens", true);
  const auto* tokens = fields.find("tokens");
  if (tokens == nullptr) fields.fail("tokens must be a list of token ids, or a list of such lists");
  out.list = tokens != nullptr && tokens->is_array() && !tokens->empty() && tokens->front().is_array();
  if (out.list) {
    for (const auto& list : *tokens) {
      const auto one = ordered_json{{"tokens", list}};
      Fields member(one);
      out.tokens.push_back(member.token_ids("tokens"));
      if (!member.ok() || !list.is_array()) fields.fail("tokens must be a list of token ids, or a list of such lists");
    }
  } else if (tokens != nullptr) {
    out.tokens.push_back(fields.token_ids("tokens"));
  }
  if (!fields.ok()) return fields.error();
  return out;
}

}  // namespace sluice::protocol
