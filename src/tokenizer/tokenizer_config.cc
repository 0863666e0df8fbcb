#include "tokenizer/tokenizer_config.h"

#include <charconv>
#include <nlohmann/json.hpp>

namespace sluice::tokenizer {
namespace {

using nlohmann::json;

// Members of another type count as absent.
std::string text_of(const json& object, const char* key) {
  const auto member = object.find(key);
  return member != object.end() && member->is_string() ? member->get<std::string>() : std::string();
}
std::optional<bool> flag_of(const json& object, const char* key) {
  const auto member = object.find(key);
  if (member == object.end() || !member->is_boolean()) return std::nullopt;
  return member->get<bool>();
}

// "<s>" or {"content": "<s>", ...}.
std::string token_of(const json& config, const char* key) {
  const auto member = config.find(key);
  if (member == config.end()) return {};
  return member->is_object() ? text_of(*member, "content") : text_of(config, key);
}

// One newline at the end of a template is no part of what it renders.
std::string_view without_last_newline(std::string_view source) {
  if (source.ends_with('\n')) source.remove_suffix(1);
  if (source.ends_with('\r')) source.remove_suffix(1);
  return source;
}

// A template, or a list of named ones, of which "tool_use" counts where there are tools and otherwise "default": one
// template that chooses. The tags leave the white space around them as it is, but for the newline after each.
std::string chat_template_of(const json& config) {
  const auto member = config.find("chat_template");
  if (member == config.end() || !member->is_array()) return text_of(config, "chat_template");
  std::string otherwise, with_tools;
  for (const auto& item : *member) {
    if (!item.is_object()) continue;
    const auto name = text_of(item, "name");
    if (otherwise.empty() || name == "default") otherwise = text_of(item, "template");
    if (name == "tool_use") with_tools = text_of(item, "template");
  }
  if (with_tools.empty() || with_tools == otherwise) return otherwise;
  return fmt::format("{{% if tools %}}\n{}{{%+ else %}}\n{}{{%+ endif %}}", without_last_newline(with_tools),
                     without_last_newline(otherwise));
}

std::vector<AddedToken> added_tokens_of(const json& config) {
  std::vector<AddedToken> out;
  const auto tokens = config.find("added_tokens_decoder");
  if (tokens == config.end() || !tokens->is_object()) return out;
  for (const auto& [key, token] : tokens->items()) {
    AddedToken added;
    const auto [end, problem] = std::from_chars(key.data(), key.data() + key.size(), added.id);
    if (problem != std::errc() || end != key.data() + key.size() || !token.is_object()) continue;
    added.content = text_of(token, "content");
    added.special = flag_of(token, "special").value_or(false);
    added.lstrip = flag_of(token, "lstrip").value_or(false);
    added.rstrip = flag_of(token, "rstrip").value_or(false);
    added.single_word = flag_of(token, "single_word").value_or(false);
    added.normalized = flag_of(token, "normalized").value_or(!added.special);
    out.push_back(std::move(added));
  }
  return out;
}

}  // namespace

Result<TokenizerConfig> read_tokenizer_config(std::string_view text) {
  TokenizerConfig out;
  if (text.empty()) return out;
  const auto config = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return Error{ErrorCode::kProtocol, "tokenizer_config.json: not a JSON object"};
  out.tokenizer_class = text_of(config, "tokenizer_class");
  out.added_tokens = added_tokens_of(config);
  for (const char* key : {"bos_token", "eos_token", "pad_token", "unk_token"}) {
    if (auto token = token_of(config, key); !token.empty()) out.special_texts[key] = std::move(token);
  }
  out.chat_template = chat_template_of(config);
  out.add_bos = flag_of(config, "add_bos_token");
  out.add_eos = flag_of(config, "add_eos_token");
  out.add_prefix_space = flag_of(config, "add_prefix_space");
  out.legacy = flag_of(config, "legacy");
  return out;
}

}  // namespace sluice::tokenizer
