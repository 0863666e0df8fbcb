// From one placement of a layer's experts to another. Pure functions; places are those of all copies of the layer, of
// which rank r of `ranks` has the r-th part.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sluice::moe {

// `wanted` with the copies of each rank in such an order that what the rank has already stays where it is.
std::vector<int32_t> keep_places(std::span<const int32_t> now, std::span<const int32_t> wanted, int64_t ranks);

// The expert at place `from` of the old placement is to be at place `to` of the new one.
struct ExpertMove {
  int32_t to = 0;
  int32_t from = 0;
  bool operator==(const ExpertMove&) const = default;
};
// By `to`, for each place whose expert changes: from a copy on the same rank if there is one, else from the copies in
// turn. An expert of `wanted` must be somewhere in `now`.
std::vector<ExpertMove> moves_between(std::span<const int32_t> now, std::span<const int32_t> wanted, int64_t ranks);

}  // namespace sluice::moe
