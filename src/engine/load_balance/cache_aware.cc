#include "engine/load_balance/cache_aware.h"

#include <algorithm>
#include <tuple>

namespace sluice::engine {
namespace {

// What one more request in a decode batch costs the others over its life, in prompt tokens: a prefix of 512 tokens is
// worth being 16 requests ahead of the emptiest rank.
constexpr int64_t kTokensPerRequest = 32;
// A token that has no room retracts another one, which is computed again.
constexpr int64_t kTokensPerOverflow = 2;

int64_t cost_of(const RankLoad& rank) {
  const int64_t fresh = std::max<int64_t>(0, rank.prompt - rank.cached);
  const int64_t overflow = rank.capacity == 0 ? 0 : std::max<int64_t>(0, rank.tokens + fresh - rank.capacity);
  return fresh + rank.waiting + kTokensPerRequest * rank.requests + kTokensPerOverflow * overflow;
}

}  // namespace

std::optional<int64_t> choose_cache_aware(std::span<const RankLoad> ranks, int64_t previous) {
  const auto order = [&](size_t i) { return std::tuple(cost_of(ranks[i]), ranks[i].tokens, ranks[i].requests); };
  std::optional<int64_t> best;
  for (size_t turn = 0; turn < ranks.size(); ++turn) {
    const size_t i = (static_cast<size_t>(previous + 1) + turn) % ranks.size();
    if (!ranks[i].active) continue;
    if (!best || order(i) < order(static_cast<size_t>(*best))) best = static_cast<int64_t>(i);
  }
  return best;
}

}  // namespace sluice::engine
