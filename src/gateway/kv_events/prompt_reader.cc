#include "gateway/kv_events/prompt_reader.h"

#include <nlohmann/json.hpp>

#include "protocol/generate_body.h"
#include "protocol/openai_body.h"
#include "tokenizer/files.h"

namespace sluice::gateway {
Result<std::unique_ptr<KvPromptReader>> KvPromptReader::load(const std::string& tokenizer_path,
                                                             const std::string& template_path) {
  const auto refused = [](const char* flag, const Error& error) {
    return Error{ErrorCode::kBadOption, fmt::format("--{}: {}", flag, error.message)};
  };
  std::unique_ptr<KvPromptReader> reader(new KvPromptReader);
  auto tokenizer = tokenizer::load_tokenizer(tokenizer_path);
  if (!tokenizer.ok()) return refused("tokenizer-path", tokenizer.error());
  reader->tokenizer_ = std::move(tokenizer).value();
  const auto source = tokenizer::load_chat_template(tokenizer_path, *reader->tokenizer_, template_path);
  if (!source.ok()) return refused("chat-template", source.error());
  if (!source->empty()) {
    auto parsed = tokenizer::ChatTemplate::parse(*source);
    if (!parsed.ok()) return refused("chat-template", parsed.error());
    reader->template_ = std::move(parsed).value();
    // The engine asks its template the same.
    reader->habits_ =
        protocol::habits_of([&](nlohmann::ordered_json variables) { return reader->render(std::move(variables)); });
  }
  return reader;
}

std::optional<KvPrompt> KvPromptReader::read(Endpoint endpoint, std::string_view body) const {
  if (body.size() > kMostBytes) return std::nullopt;
  const auto of = [&](const protocol::Prompt& prompt) {
    return KvPrompt{.tokens = prompt.ids ? *prompt.ids : tokenizer_->encode(prompt.text, /*add_special=*/true),
                    .names = {}};
  };
  if (endpoint == Endpoint::kChat) return read_chat(body);
  if (endpoint == Endpoint::kCompletions) {
    const auto parsed = protocol::parse_completion_body(body, {});
    if (!parsed.ok() || parsed->prompts.size() != 1 || !parsed->routing.extra_key.empty()) return std::nullopt;
    return of(parsed->prompts.front());
  }
  if (endpoint == Endpoint::kGenerate) {
    const auto parsed = protocol::parse_generate_body(body);
    if (!parsed.ok() || parsed->items.size() != 1 || !parsed->items.front().extra_key.empty()) return std::nullopt;
    return of(parsed->items.front().prompt);
  }
  return std::nullopt;
}

std::optional<std::string> KvPromptReader::render(nlohmann::ordered_json variables) const {
  for (const auto& [name, text] : tokenizer_->special_tokens()) {
    if (!variables.contains(name)) variables[name] = text;
  }
  auto rendered = template_->render(variables);
  if (!rendered.ok()) return std::nullopt;
  return std::move(rendered).value();
}

std::optional<KvPrompt> KvPromptReader::read_chat(std::string_view body) const {
  const auto parsed = protocol::parse_chat_body(body, {}, habits_);
  if (!parsed.ok() || !parsed->routing.extra_key.empty()) return std::nullopt;
  if (parsed->input_ids) return KvPrompt{.tokens = *parsed->input_ids, .names = {}};
  if (!template_) return std::nullopt;
  const auto rendered = render(*parsed->template_context);
  if (!rendered) return std::nullopt;
  // The template writes the special tokens itself.
  return KvPrompt{.tokens = tokenizer_->encode(*rendered + parsed->prefix, /*add_special=*/false),
                  .has_tools = parsed->template_context->contains("tools"),
                  .names = {}};
}

}  // namespace sluice::gateway
