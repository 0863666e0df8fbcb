#include "parallel/topology.h"

#include <fmt/format.h>

#include <algorithm>

namespace sluice::parallel {

Slice part_of(int64_t total, Place place) {
  const int64_t each = total / place.size, more = total % place.size;
  return {place.rank * each + std::min(place.rank, more), each + (place.rank < more ? 1 : 0)};
}

std::vector<int64_t> nearest_divisors(int64_t n, int64_t wanted) {
  std::vector<int64_t> nearest;
  for (int64_t below = std::min(wanted, n); below >= 1; --below) {
    if (n % below != 0) continue;
    nearest.push_back(below);
    break;
  }
  for (int64_t above = std::max<int64_t>(wanted, 1); above <= n; ++above) {
    if (n % above != 0) continue;
    if (nearest.empty() || nearest.back() != above) nearest.push_back(above);
    break;
  }
  return nearest;
}

Result<void> check_layout(const Layout& layout) {
  const auto divides = [&](const char* flag, int64_t size) -> Result<void> {
    if (layout.tp_size % size == 0) return {};
    return Error{ErrorCode::kBadOption,
                 fmt::format("{} {} does not divide --tp-size {}; the nearest values that do: {}", flag, size,
                             layout.tp_size, fmt::join(nearest_divisors(layout.tp_size, size), ", "))};
  };
  SLUICE_TRY_VOID(divides("--dp-size", layout.dp_size));
  SLUICE_TRY_VOID(divides("--ep-size", layout.ep_size));
  if (layout.a2a == MoeAllToAll::kDeepEp && layout.ep_size != layout.tp_size) {
    return Error{ErrorCode::kBadOption,
                 fmt::format("--moe-a2a-backend deepep needs --ep-size {}, that of --tp-size, not {}", layout.tp_size,
                             layout.ep_size)};
  }
  return {};
}

}  // namespace sluice::parallel
