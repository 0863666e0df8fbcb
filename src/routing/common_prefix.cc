#include "routing/common_prefix.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace sluice::routing {

size_t common_prefix(std::string_view a, std::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t i = 0;
  // What is equal is passed in large steps: the library compares with the widest registers of the machine.
  constexpr size_t kStep = 256;
  while (i + kStep <= limit && std::memcmp(a.data() + i, b.data() + i, kStep) == 0) i += kStep;
  for (; i + 8 <= limit; i += 8) {
    uint64_t x, y;
    std::memcpy(&x, a.data() + i, 8);
    std::memcpy(&y, b.data() + i, 8);
    if (x != y) return i + static_cast<size_t>(__builtin_ctzll(x ^ y)) / 8;
  }
  while (i < limit && a[i] == b[i]) ++i;
  return i;
}

size_t whole_characters(std::string_view text, size_t length) {
  const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
  for (size_t back = 1; back <= 3 && back <= length && length < text.size(); ++back) {
    const unsigned char lead = byte(length - back);
    if ((lead & 0xC0) == 0x80) continue;
    const size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    return size > back && (byte(length) & 0xC0) == 0x80 ? length - back : length;
  }
  return length;
}

}  // namespace sluice::routing
