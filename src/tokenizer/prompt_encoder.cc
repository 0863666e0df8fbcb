#include "tokenizer/prompt_encoder.h"

#include <algorithm>
#include <array>

#include "base/rng.h"
#include "tokenizer/tokenizer_impl.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {
namespace {

constexpr size_t kSegment = 512;         // bytes, at least
constexpr size_t kShortest = 48;         // shorter ones are as quick to tokenize as to find
constexpr size_t kLongest = 256 * 1024;  // longer ones are not kept
constexpr int kTrials = 300;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// U+4E00 to U+9FFF at the head of `text`.
bool is_ideograph(std::string_view text) {
  if (text.size() < 3) return false;
  const auto first = static_cast<unsigned char>(text[0]), second = static_cast<unsigned char>(text[1]);
  return (first == 0xE4 && second >= 0xB8) || (first >= 0xE5 && first <= 0xE8) || first == 0xE9;
}

// Normalisation joins nothing there either.
bool may_cut(std::string_view text, size_t at, Cuts cuts) {
  if (text[at] == ' ') return is_letter(text[at - 1]) && at + 1 < text.size() && is_letter(text[at + 1]);
  return cuts == Cuts::kWordsAndLines && text[at - 1] == '\n' && (is_letter(text[at]) || is_ideograph(text.substr(at)));
}

// Tokens that are found after normalisation could lie across a cut, or look across it.
bool could_cross(const AddedToken& token) {
  return token.lstrip || token.rstrip || token.single_word || token.content.find_first_of(" \n") != std::string::npos;
}

std::string text_of_seams(Rng& rng) {
  constexpr std::array<std::string_view, 24> kPieces = {
      "a ", "b", " c",  "\nd", "'s",      " ",  "  ",   "\n",      "\r\n", "\t", "12",      ".",
      "?!", "'", "ABC", "é",   "e\u0301", "漢", "\n字", "\u00a0x", "_",    "/",  "ll word", "\n\nEnd of"};
  std::string text;
  for (int i = 0; i < 16; ++i) text += kPieces[rng.below(kPieces.size())];
  return text;
}

}  // namespace

size_t next_cut(std::string_view text, size_t from, Cuts cuts) {
  for (size_t at = from; at < text.size(); ++at) {
    if (may_cut(text, at, cuts)) return at;
  }
  return text.size();
}

Cuts Tokenizer::Impl::cuts() const {
  if (pieces != nullptr || rest_normalizer) return has_rest() && rest_survives() ? Cuts::kWords : Cuts::kNone;
  if (std::ranges::any_of(later_tokens.tokens(), could_cross)) return Cuts::kNone;
  for (const auto cuts : {Cuts::kWordsAndLines, Cuts::kWords}) {
    if (survives(cuts)) return cuts;
  }
  return Cuts::kNone;
}

// Whether normalisation knows nothing of what lies before a cut.
bool Tokenizer::Impl::rest_survives() const {
  Rng rng(1);
  for (int trial = 0; trial < kTrials; ++trial) {
    const std::string text = text_of_seams(rng);
    std::vector<int32_t> whole, in_parts;
    encode_section(text, /*at_start=*/true, /*parse_special=*/true, whole);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = next_cut(text, begin + 1, Cuts::kWords);
      const auto part = std::string_view(text).substr(begin, end - begin);
      begin == 0 ? encode_section(part, /*at_start=*/true, /*parse_special=*/true, in_parts)
                 : encode_rest(part, in_parts);
      begin = end;
    }
    if (whole != in_parts) return false;
  }
  return true;
}

// Texts full of seams, as a whole and cut at every place where that is allowed.
bool Tokenizer::Impl::survives(Cuts cuts) const {
  const auto words_of = [this](std::string_view text, std::vector<std::string>& out) {
    std::string normalized;
    Words words;
    pre_tokenizer.split(normalizer.apply(text, normalized), /*at_start=*/false, words);
    out.insert(out.end(), words.words.begin(), words.words.end());
  };
  Rng rng(1);
  for (int trial = 0; trial < kTrials; ++trial) {
    const std::string text = text_of_seams(rng);
    std::vector<std::string> whole, in_pieces;
    words_of(text, whole);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = next_cut(text, begin + 1, cuts);
      words_of(std::string_view(text).substr(begin, end - begin), in_pieces);
      begin = end;
    }
    if (whole != in_pieces) return false;
  }
  return true;
}

PromptEncoder::PromptEncoder(std::shared_ptr<const Tokenizer> tokenizer, size_t max_bytes)
    : tokenizer_(std::move(tokenizer)), cuts_(tokenizer_->impl_->cuts()), cache_(max_bytes) {}

std::vector<int32_t> PromptEncoder::encode(std::string_view text, bool add_special) {
  const auto& impl = *tokenizer_->impl_;
  if (cuts_ == Cuts::kNone) {
    tokenized_bytes_.fetch_add(text.size(), std::memory_order_relaxed);
    return tokenizer_->encode(text, add_special);
  }
  std::string valid;
  if (!is_valid_utf8(text)) {
    append_lossy(text, valid, nullptr);
    text = valid;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special) ids.insert(ids.end(), impl.prefix.begin(), impl.prefix.end());
  std::vector<TextSection> sections;
  impl.raw_tokens.split(text, /*parse_special=*/true, sections);
  for (const auto& section : sections) {
    if (section.token >= 0) {
      ids.push_back(section.token);
    } else {
      encode_section(section.text, &section == sections.data(), ids);
    }
  }
  if (add_special) ids.insert(ids.end(), impl.suffix.begin(), impl.suffix.end());
  return ids;
}

void PromptEncoder::encode_section(std::string_view text, bool at_start, std::vector<int32_t>& ids) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = next_cut(text, std::min(begin + kSegment, text.size()), cuts_);
    const auto segment = text.substr(begin, end - begin);
    const auto& impl = *tokenizer_->impl_;
    const bool rest = impl.has_rest() && begin > 0;
    const bool first = at_start && begin == 0;
    // What begins a text may get a space before it: the same bytes have other ids elsewhere.
    const bool alike = impl.has_rest() ? rest : !(first && impl.pre_tokenizer.looks_at_start());
    const bool kept = segment.size() >= kShortest && segment.size() <= kLongest && alike;
    if (!kept || !cache_.find(segment, ids)) {
      const size_t before = ids.size();
      if (rest) {
        impl.encode_rest(segment, ids);
      } else {
        impl.encode_section(segment, first, /*parse_special=*/true, ids);
      }
      tokenized_bytes_.fetch_add(segment.size(), std::memory_order_relaxed);
      if (kept) cache_.put(segment, std::vector<int32_t>(ids.begin() + static_cast<ptrdiff_t>(before), ids.end()));
    }
    begin = end;
  }
}

}  // namespace sluice::tokenizer
