#include "tokenizer/byte_alphabet.h"

#include <charconv>

#include "tokenizer/utf8.h"

namespace sluice::tokenizer {

namespace {

struct Alphabet {
  Alphabet() {
    byte_of.fill(-1);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
      character_of[b] = printable ? static_cast<char32_t>(b) : next++;
      byte_of[character_of[b]] = static_cast<int16_t>(b);
    }
  }
  std::array<char32_t, 256> character_of;
  std::array<int16_t, 256 + 68> byte_of;  // by character; -1: not in the alphabet
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::array<char32_t, 256>& byte_alphabet() { return alphabet().character_of; }

std::string in_alphabet(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_code_point(byte_alphabet()[static_cast<unsigned char>(c)], out);
  return out;
}

std::optional<std::string> bytes_of_alphabet(std::string_view token) {
  const auto& byte_of = alphabet().byte_of;
  std::string bytes;
  while (!token.empty()) {
    const auto step = utf8_step(token);
    if (step.kind != Utf8Step::Kind::kCharacter || step.code_point >= byte_of.size() || byte_of[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(byte_of[step.code_point]));
    token.remove_prefix(step.length);
  }
  return bytes;
}

int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return -1;
  uint8_t byte = 0;
  const auto [end, problem] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  return problem == std::errc() && end == token.data() + 5 ? byte : -1;
}

}  // namespace sluice::tokenizer
