#include "tokenizer/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

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

// Characters that Unicode has after version 9 and that normalisation would move, take apart or join. The `tokenizers`
// package has the tables of version 9, for which they are like any letter.
const icu::UnicodeSet& newer_marks() {
  static const icu::UnicodeSet instance = [] {
    UErrorCode status = U_ZERO_ERROR;
    icu::UnicodeSet set(
        "[[^[:age=9.0:]] & [[:^ccc=0:][:NFC_QC=Maybe:][:NFC_QC=No:][:NFD_QC=No:][:NFKC_QC=No:][:NFKD_QC=No:]]]",
        status);
    SLUICE_CHECK(U_SUCCESS(status), "ICU has no properties of characters: {}", u_errorName(status));
    set.freeze();
    return set;
  }();
  return instance;
}

void normalize(const icu::Normalizer2& normalizer, std::string_view text, std::string& out) {
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text.size()));
  UErrorCode status = U_ZERO_ERROR;
  normalizer.normalizeUTF8(0, piece, sink, nullptr, status);
  SLUICE_CHECK(U_SUCCESS(status), "ICU cannot normalise: {}", u_errorName(status));
}

// Each step returns the new text, or nothing when it is what it was.
std::optional<std::string> step(UnicodeForm form, std::string_view text) {
  if (is_ascii(text)) return std::nullopt;
  const auto& normalizer = form_of(form);
  UErrorCode status = U_ZERO_ERROR;
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  if (normalizer.isNormalizedUTF8(piece, status) && U_SUCCESS(status)) return std::nullopt;
  std::string out;
  while (!text.empty()) {
    const auto old = static_cast<size_t>(
        newer_marks().spanUTF8(text.data(), static_cast<int32_t>(text.size()), USET_SPAN_NOT_CONTAINED));
    normalize(normalizer, text.substr(0, old), out);
    text.remove_prefix(old);
    const auto newer = static_cast<size_t>(
        newer_marks().spanUTF8(text.data(), static_cast<int32_t>(text.size()), USET_SPAN_CONTAINED));
    out += text.substr(0, newer);
    text.remove_prefix(newer);
  }
  return out;
}

std::optional<std::string> step(const ReplaceStep& replace, std::string_view text) {
  std::optional<Regex::Match> match;
  if (!replace.pattern.next(text, match)) return std::nullopt;
  std::string out;
  size_t done = 0;
  do {
    out.append(text.substr(done, match->begin - done)).append(replace.content);
    done = match->end;
  } while (replace.pattern.next(text, match));
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
