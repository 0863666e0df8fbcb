#include "routing/hash_ring.h"

#include <fmt/format.h>
#include <xxhash.h>

namespace sluice::routing {

HashRing::HashRing(std::span<const Member> members) {
  places_.reserve(members.size() * kPlacesPerWorker);
  fmt::memory_buffer name;
  for (const Member& member : members) {
    for (size_t i = 0; i < kPlacesPerWorker; ++i) {
      name.clear();
      fmt::format_to(std::back_inserter(name), "{}#{}", member.name, i);
      places_.push_back({position({name.data(), name.size()}), member.worker});
    }
  }
  std::ranges::sort(places_, {}, [](const Place& place) { return std::pair(place.position, place.worker); });
}

uint64_t HashRing::position(std::string_view key) { return XXH3_64bits(key.data(), key.size()); }

}  // namespace sluice::routing
