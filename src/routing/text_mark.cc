#include "routing/text_mark.h"

#include <fmt/format.h>
#include <xxhash.h>

#include "base/rng.h"

namespace sluice::routing {

uint64_t text_hash(std::string_view text) {
  static const uint64_t seed = random_seed();
  constexpr size_t kEnd = 512;
  if (text.size() <= 2 * kEnd) return XXH3_64bits_withSeed(text.data(), text.size(), seed);
  const uint64_t begin = XXH3_64bits_withSeed(text.data(), kEnd, seed + text.size());
  return XXH3_64bits_withSeed(text.data() + text.size() - kEnd, kEnd, begin);
}

std::string hash_digits(uint64_t hash) { return fmt::format("{:016x}", hash); }

}  // namespace sluice::routing
