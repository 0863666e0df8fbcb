#include "tokenizer/tokenizer.h"

#include <algorithm>

#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {
namespace {

constexpr size_t kManyWords = size_t{1} << 16;

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

void Tokenizer::Impl::take(const TokenizerConfig& config) {
  special_texts = config.special_texts;
  const auto id_of = [&](const char* key) -> std::optional<int32_t> {
    const auto text = special_texts.find(key);
    const int32_t id = text == special_texts.end() ? -1 : texts.find(text->second);
    return id < 0 ? std::nullopt : std::optional(id);
  };
  bos_id = id_of("bos_token");
  eos_id = id_of("eos_token");
  pad_id = id_of("pad_token");
  chat_template = config.chat_template;
}

void Tokenizer::Impl::encode_section(std::string_view text, bool at_start, bool parse_special,
                                     std::vector<int32_t>& ids) const {
  thread_local Words words;
  std::string normalized;
  std::vector<TextSection> parts;
  later_tokens.split(normalizer.apply(text, normalized), parse_special, parts);
  for (const auto& part : parts) {
    if (part.token >= 0) {
      ids.push_back(part.token);
      continue;
    }
    const bool first = at_start && &part == parts.data();
    if (pieces != nullptr) {
      pieces->encode(part.text, first, ids);
      continue;
    }
    pre_tokenizer.split(part.text, first, words);
    for (const auto word : words.words) bpe->encode(word, ids);
  }
  if (words.words.capacity() > kManyWords) words = {};  // one giant text does not hold its memory for ever
}

void Tokenizer::Impl::encode_rest(std::string_view text, std::vector<int32_t>& ids) const {
  if (pieces != nullptr) return pieces->encode_rest(text, ids);
  std::string normalized;
  bpe->encode(rest_normalizer->apply(text, normalized), ids);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool parse_special) const {
  std::string valid;
  if (!is_valid_utf8(text)) {
    append_lossy(text, valid, nullptr);
    text = valid;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special) ids.insert(ids.end(), impl_->prefix.begin(), impl_->prefix.end());
  std::vector<TextSection> sections;
  impl_->raw_tokens.split(text, parse_special, sections);
  for (const auto& section : sections) {
    if (section.token >= 0) {
      ids.push_back(section.token);
    } else {
      impl_->encode_section(section.text, &section == sections.data(), parse_special, ids);
    }
  }
  if (add_special) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special && is_special(id)) continue;
    bytes += token_bytes(id);
  }
  std::string_view text = bytes;
  for (size_t i = 0; i < impl_->strip_left && text.starts_with(' '); ++i) text.remove_prefix(1);
  if (text.size() == bytes.size() && is_valid_utf8(text)) return bytes;
  std::string out;
  append_lossy(text, out, nullptr);
  return out;
}

std::string_view Tokenizer::token_bytes(int32_t id) const { return impl_->bytes.text(id); }

std::string_view Tokenizer::token_text(int32_t id) const { return impl_->texts.text(id); }

std::optional<int32_t> Tokenizer::id_of(std::string_view token_text) const {
  const int32_t id = impl_->texts.find(token_text);
  if (id < 0) return std::nullopt;
  return id;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < impl_->special.size() && impl_->special[static_cast<size_t>(id)];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->texts.size()); }

std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return impl_->eos_id; }
std::optional<int32_t> Tokenizer::pad_id() const { return impl_->pad_id; }
const std::map<std::string, std::string>& Tokenizer::special_tokens() const { return impl_->special_texts; }
const std::string& Tokenizer::chat_template() const { return impl_->chat_template; }

IncrementalDecoder::IncrementalDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special, bool at_head)
    : tokenizer_(std::move(tokenizer)),
      skip_special_(skip_special),
      at_head_(at_head ? tokenizer_->impl_->strip_left : 0),
      strip_(at_head_) {}

std::string IncrementalDecoder::push(int32_t id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  std::string_view bytes = tokenizer_->token_bytes(id);
  for (; strip_ > 0 && bytes.starts_with(' '); --strip_) bytes.remove_prefix(1);
  if (bytes.empty()) return {};
  strip_ = 0;
  if (pending_.empty() && is_ascii(bytes)) return std::string(bytes);
  pending_ += bytes;
  std::string out, rest;
  append_lossy(pending_, out, &rest);
  pending_ = std::move(rest);
  return out;
}

std::string IncrementalDecoder::finish() {
  std::string out;
  append_lossy(pending_, out, nullptr);
  pending_.clear();
  strip_ = at_head_;
  return out;
}

}  // namespace sluice::tokenizer
