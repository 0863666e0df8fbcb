#include "tokenizer/added_tokens.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <cstring>

#include "tokenizer/utf8.h"

namespace sluice::tokenizer {

namespace {

bool is_space(char32_t c) { return u_isUWhiteSpace(static_cast<UChar32>(c)); }

bool is_word(char32_t c) {
  const auto u = static_cast<UChar32>(c);
  return u_isalnum(u) || c == '_' || u_hasBinaryProperty(u, UCHAR_ALPHABETIC) ||
         (U_GET_GC_MASK(u) & (U_GC_M_MASK | U_GC_PC_MASK)) != 0;
}

// Start of the last character of `text`, which is not empty.
size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word(utf8_step(text.substr(last_character(text))).code_point);
}

bool starts_with_word(std::string_view text) { return !text.empty() && is_word(utf8_step(text).code_point); }

size_t trailing_space_begin(std::string_view text) {
  while (!text.empty()) {
    const size_t at = last_character(text);
    if (!is_space(utf8_step(text.substr(at)).code_point)) break;
    text = text.substr(0, at);
  }
  return text.size();
}

size_t leading_space_size(std::string_view text) {
  size_t n = 0;
  while (n < text.size()) {
    const auto step = utf8_step(text.substr(n));
    if (!is_space(step.code_point)) break;
    n += step.length;
  }
  return n;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(const std::vector<AddedToken>& tokens) : nodes_{-1} {
  for (const auto& token : tokens) {
    if (token.content.empty()) continue;
    uint32_t node = 0;
    for (const char c : token.content) {
      const auto byte = static_cast<unsigned char>(c);
      const auto [edge, inserted] = edges_.try_emplace(node << 8 | byte, static_cast<uint32_t>(nodes_.size()));
      if (inserted) nodes_.push_back(-1);
      if (node == 0) first_[byte] = edge->second;
      node = edge->second;
    }
    if (nodes_[node] < 0) nodes_[node] = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
  }
  const auto n_first = std::count_if(first_.begin(), first_.end(), [](uint32_t node) { return node != 0; });
  if (n_first == 1) only_first_ = static_cast<unsigned char>(tokens_.front().content.front());
}

size_t AddedTokenMatcher::skip(std::string_view text, size_t from) const {
  if (only_first_ >= 0) {
    const size_t at = text.find(static_cast<char>(only_first_), from);
    return at == std::string_view::npos ? text.size() : at;
  }
  while (from < text.size() && first_[static_cast<unsigned char>(text[from])] == 0) ++from;
  return from;
}

int32_t AddedTokenMatcher::match(std::string_view text) const {
  int32_t best = -1;
  uint32_t node = first_[static_cast<unsigned char>(text[0])];
  for (size_t i = 1; node != 0; ++i) {
    if (nodes_[node] >= 0) best = nodes_[node];
    if (i == text.size()) break;
    const auto edge = edges_.find(node << 8 | static_cast<unsigned char>(text[i]));
    node = edge == edges_.end() ? 0 : edge->second;
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view text, bool parse_special, std::vector<TextSection>& sections) const {
  size_t done = 0;  // text[0, done) is in `sections`
  size_t at = tokens_.empty() ? text.size() : skip(text, 0);
  while (at < text.size()) {
    const int32_t index = match(text.substr(at));
    if (index < 0) {
      at = skip(text, at + 1);
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at;
    size_t end = at + token.content.size();
    at = end;
    if (token.special && !parse_special) {
      at = skip(text, at);
      continue;
    }
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) {
      at = skip(text, at);
      continue;
    }
    if (token.lstrip) begin = done + trailing_space_begin(text.substr(done, begin - done));
    if (token.rstrip) end += leading_space_size(text.substr(end));
    if (begin > done) sections.push_back({text.substr(done, begin - done), -1});
    sections.push_back({text.substr(begin, end - begin), token.id});
    done = end;
    at = skip(text, end);
  }
  if (done < text.size()) sections.push_back({text.substr(done), -1});
}

}  // namespace sluice::tokenizer
