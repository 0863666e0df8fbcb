#include "engine/load_balance/total_requests.h"

namespace sluice::engine {

std::optional<int64_t> choose_total_requests(std::span<const RankLoad> ranks, int64_t /*previous*/) {
  std::optional<int64_t> best;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!ranks[i].active) continue;
    if (!best || ranks[i].requests < ranks[static_cast<size_t>(*best)].requests) best = static_cast<int64_t>(i);
  }
  return best;
}

}  // namespace sluice::engine
