#pragma once

#include "engine/load_balance/method.h"

namespace sluice::engine {

// The active ranks in turn, whatever they have to do.
std::optional<int64_t> choose_round_robin(std::span<const RankLoad> ranks, int64_t previous);

}  // namespace sluice::engine
