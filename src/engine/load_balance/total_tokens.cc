#include "engine/load_balance/total_tokens.h"

#include <tuple>

namespace sluice::engine {

std::optional<int64_t> choose_total_tokens(std::span<const RankLoad> ranks, int64_t /*previous*/) {
  const auto cost = [&](size_t i) { return std::tuple(ranks[i].tokens, ranks[i].requests); };
  std::optional<int64_t> best;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!ranks[i].active) continue;
    if (!best || cost(i) < cost(static_cast<size_t>(*best))) best = static_cast<int64_t>(i);
  }
  return best;
}

}  // namespace sluice::engine
