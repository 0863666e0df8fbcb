#include "moe/expert_moves.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace sluice::moe {

std::vector<int32_t> keep_places(std::span<const int32_t> now, std::span<const int32_t> wanted, int64_t ranks) {
  const auto per_rank = now.size() / static_cast<size_t>(ranks);
  std::vector<int32_t> placed(wanted.size(), -1);
  for (size_t first = 0; first < wanted.size(); first += per_rank) {
    std::vector<int32_t> left(wanted.begin() + static_cast<std::ptrdiff_t>(first),
                              wanted.begin() + static_cast<std::ptrdiff_t>(first + per_rank));
    for (size_t i = first; i < first + per_rank; ++i) {
      const auto here = std::ranges::find(left, now[i]);
      if (here == left.end()) continue;
      placed[i] = now[i];
      left.erase(here);
    }
    auto next = left.begin();
    for (size_t i = first; i < first + per_rank; ++i) {
      if (placed[i] < 0) placed[i] = *next++;
    }
  }
  return placed;
}

std::vector<ExpertMove> moves_between(std::span<const int32_t> now, std::span<const int32_t> wanted, int64_t ranks) {
  const auto per_rank = static_cast<int32_t>(std::ssize(now) / ranks);
  std::map<int32_t, std::vector<int32_t>> copies;
  for (size_t i = 0; i < now.size(); ++i) copies[now[i]].push_back(static_cast<int32_t>(i));
  std::map<int32_t, size_t> turns;
  std::vector<ExpertMove> moves;
  for (int32_t to = 0; to < std::ssize(wanted); ++to) {
    const int32_t expert = wanted[static_cast<size_t>(to)];
    if (now[static_cast<size_t>(to)] == expert) continue;
    const auto& from = copies[expert];
    SLUICE_CHECK(!from.empty(), "expert {} is nowhere", expert);
    const auto near = std::ranges::find(from, to / per_rank, [&](int32_t place) { return place / per_rank; });
    moves.push_back({to, near != from.end() ? *near : from[turns[expert]++ % from.size()]});
  }
  return moves;
}

}  // namespace sluice::moe
