// UTF-8 by the rules of Unicode, table 3-7, with replacement of what is malformed by maximal subparts: the practice
// that Python's decode(errors="replace") and Rust's from_utf8_lossy share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::tokenizer {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
  enum class Kind : uint8_t { kCharacter, kMalformed, kIncomplete };
  Kind kind;
  uint8_t length;       // bytes consumed, 1 to 4
  char32_t code_point;  // of a character
};

// The character at the head of `bytes`, which is not empty. kIncomplete: all of `bytes` is the beginning of a character
// whose rest is missing.
Utf8Step utf8_step(std::string_view bytes);

bool is_valid_utf8(std::string_view bytes);

// Appends `bytes` to `out` with U+FFFD for what is malformed. The beginning of a character at the end goes to `*rest`,
// or counts as malformed when `rest` is null.
void append_lossy(std::string_view bytes, std::string& out, std::string* rest);

void append_code_point(char32_t code_point, std::string& out);

// Number of code points; `text` is valid UTF-8.
size_t count_code_points(std::string_view text);

inline bool is_ascii(std::string_view text) {
  unsigned char all = 0;
  for (const char c : text) all |= static_cast<unsigned char>(c);
  return all < 0x80;
}

}  // namespace sluice::tokenizer
