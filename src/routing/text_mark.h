// A text as it may be shown to those who must not read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::routing {

// Tells equal texts from different ones within this process, and nothing else: the seed is random, so that nobody can
// look a short text up. Of more than 1 KiB only both ends count, and the length: the cost does not grow with the text.
uint64_t text_hash(std::string_view text);
// 16 hexadecimal digits.
std::string hash_digits(uint64_t hash);

}  // namespace sluice::routing
