// Consistent hashing (Karger et al. 1997): every worker sits at many places of a ring of 64-bit positions, and a key
// belongs to the first worker clockwise from its own position. Adding or removing one of n workers moves about 1/n of
// the keys.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sluice::routing {

// Immutable after construction: any thread.
class HashRing {
 public:
  static constexpr size_t kPlacesPerWorker = 150;  // as the SGLang gateway has it
  struct Member {
    uint32_t worker = 0;
    std::string_view name;  // what the places are made of, so that a restart of the gateway finds them again
  };

  HashRing() = default;
  explicit HashRing(std::span<const Member> members);

  // XXH3 of the key, as of the places.
  static uint64_t position(std::string_view key);

  // Calls visit(worker) clockwise from `position` until it returns true or every place was seen; a worker is met at
  // each of its places. False if nobody was taken.
  template <class Visit>
  bool walk(uint64_t position, Visit&& visit) const {
    const auto first = std::ranges::lower_bound(places_, position, {}, &Place::position);
    for (auto at = first; at != places_.end(); ++at) {
      if (visit(at->worker)) return true;
    }
    for (auto at = places_.begin(); at != first; ++at) {
      if (visit(at->worker)) return true;
    }
    return false;
  }

 private:
  struct Place {
    uint64_t position = 0;
    uint32_t worker = 0;
  };
  std::vector<Place> places_;  // ascending
};

}  // namespace sluice::routing
