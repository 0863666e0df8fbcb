#pragma once

#include "engine/load_balance/method.h"

namespace sluice::engine {

// The active rank with the fewest tokens, then the fewest requests; the first of equals.
std::optional<int64_t> choose_total_tokens(std::span<const RankLoad> ranks, int64_t previous);

}  // namespace sluice::engine
