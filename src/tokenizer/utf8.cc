#include "tokenizer/utf8.h"

namespace sluice::tokenizer {

Utf8Step utf8_step(std::string_view bytes) {
  using Kind = Utf8Step::Kind;
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {Kind::kCharacter, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::kMalformed, 1, 0};

  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range depends on the first: no overlong forms, no surrogates, nothing above U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Kind::kIncomplete, static_cast<uint8_t>(i), 0};
    const unsigned char c = at(i);
    if (c < (i == 1 ? low : 0x80) || c > (i == 1 ? high : 0xBF)) return {Kind::kMalformed, static_cast<uint8_t>(i), 0};
    code_point = (code_point << 6) | (c & 0x3F);
  }
  return {Kind::kCharacter, static_cast<uint8_t>(length), code_point};
}

bool is_valid_utf8(std::string_view bytes) {
  if (is_ascii(bytes)) return true;
  while (!bytes.empty()) {
    const auto step = utf8_step(bytes);
    if (step.kind != Utf8Step::Kind::kCharacter) return false;
    bytes.remove_prefix(step.length);
  }
  return true;
}

void append_lossy(std::string_view bytes, std::string& out, std::string* rest) {
  if (is_ascii(bytes)) {
    out.append(bytes);
    return;
  }
  size_t good = 0;  // bytes[0, good) is valid and not appended yet
  while (good < bytes.size()) {
    const auto step = utf8_step(bytes.substr(good));
    if (step.kind == Utf8Step::Kind::kCharacter) {
      good += step.length;
      continue;
    }
    out.append(bytes.substr(0, good));
    if (step.kind == Utf8Step::Kind::kIncomplete && rest != nullptr) {
      rest->assign(bytes.substr(good));
      return;
    }
    out.append(kReplacement);
    bytes.remove_prefix(good + step.length);
    good = 0;
  }
  out.append(bytes);
}

void append_code_point(char32_t c, std::string& out) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (c >> 6)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (c >> 12)));
    out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | (c >> 18)));
    out.push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

size_t count_code_points(std::string_view text) {
  size_t n = 0;
  for (const char c : text) n += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return n;
}

}  // namespace sluice::tokenizer
