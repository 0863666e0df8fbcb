// The byte-level alphabet of GPT-2: every byte is spelled as one printable character, so that vocabularies are text.
// Printable bytes of Latin-1 are themselves, the others are U+0100 onwards in order ("Ġ" is the space).
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

namespace sluice::tokenizer {

// The character of each byte.
const std::array<char32_t, 256>& byte_alphabet();

// Bytes as a word of that alphabet.
std::string in_alphabet(std::string_view bytes);
// The bytes that `token` spells, or nothing when it holds a character outside the alphabet.
std::optional<std::string> bytes_of_alphabet(std::string_view token);
// The byte that a token of byte fallback stands for, "<0x0A>"; -1 for any other token.
int fallback_byte(std::string_view token);

}  // namespace sluice::tokenizer
