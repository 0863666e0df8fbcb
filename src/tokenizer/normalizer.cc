#include "tokenizer/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>

#include <optional>

#include "base/check.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer {

namespace {

const icu::Normalizer2& form_of(UnicodeForm form) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* instance = nullptr;
  switch (form) {
    case UnicodeForm::kNfc:
      instance = icu::Normalizer2::getNFCInstance(status);
      break;
    case UnicodeForm::kNfd:
      instance = icu::Normalizer2::getNFDInstance(status);
      break;
    case UnicodeForm::kNfkc:
      instance = icu::Normalizer2::getNFKCInstance(status);
      break;
    case UnicodeForm::kNfkd:
      instance = icu::Normalizer2::getNFKDInstance(status);
      break;
  }
  SLUICE_CHECK(U_SUCCESS(status) && instance != nullptr, "ICU has no normalisation data: {}", u_errorName(status));
  return *instance;
}

// Each step returns the new text, or nothing when it is what it was.
std::optional<std::string> step(UnicodeForm form, std::string_view text) {
  if (is_ascii(text)) return std::nullopt;
  const auto& normalizer = form_of(form);
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  UErrorCode status = U_ZERO_ERROR;
  if (normalizer.isNormalizedUTF8(piece, status) && U_SUCCESS(status)) return std::nullopt;
  std::string out;
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  status = U_ZERO_ERROR;
  normalizer.normalizeUTF8(0, piece, sink, nullptr, status);
  SLUICE_CHECK(U_SUCCESS(status), "ICU cannot normalise: {}", u_errorName(status));
  return out;
}

std::optional<std::string> step(const ReplaceStep& replace, std::string_view text) {
  Regex::Match match;
  if (!replace.pattern.find(text, 0, match)) return std::nullopt;
  std::string out;
  size_t done = 0;
  do {
    out.append(text.substr(done, match.begin - done)).append(replace.content);
    done = match.end;
  } while (replace.pattern.find(text, done, match));
  out.append(text.substr(done));
  return out;
}

std::optional<std::string> step(const PrependStep& prepend, std::string_view text) {
  if (text.empty()) return std::nullopt;
  return prepend.text + std::string(text);
}

std::optional<std::string> step(const StripStep& strip, std::string_view text) {
  size_t begin = 0;
  size_t last = 0;  // end of the last character that is no space
  for (size_t at = 0; at < text.size();) {
    const auto character = utf8_step(text.substr(at));
    const bool space = u_isUWhiteSpace(static_cast<UChar32>(character.code_point));
    if (!space) {
      if (last == 0) begin = at;
      last = at + character.length;
    }
    at += character.length;
  }
  if (last == 0) begin = last = strip.left ? text.size() : 0;
  const size_t from = strip.left ? begin : 0;
  const size_t to = strip.right ? last : text.size();
  return std::string(text.substr(from, to > from ? to - from : 0));
}

}  // namespace

std::string_view Normalizer::apply(std::string_view text, std::string& storage) const {
  SLUICE_CHECK(text.size() <= INT32_MAX, "a text of {} bytes", text.size());
  for (const auto& s : steps_) {
    auto changed = std::visit([&](const auto& one) { return step(one, text); }, s);
    if (!changed) continue;
    storage = std::move(*changed);
    text = storage;
  }
  return text;
}

}  // namespace sluice::tokenizer
