#include "engine/load_balance/round_robin.h"

namespace sluice::engine {

std::optional<int64_t> choose_round_robin(std::span<const RankLoad> ranks, int64_t previous) {
  const auto count = static_cast<int64_t>(ranks.size());
  for (int64_t step = 1; step <= count; ++step) {
    const int64_t rank = (previous + step) % count;
    if (ranks[static_cast<size_t>(rank)].active) return rank;
  }
  return std::nullopt;
}

}  // namespace sluice::engine
