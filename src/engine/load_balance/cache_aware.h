#pragma once

#include "engine/load_balance/method.h"

namespace sluice::engine {

// The active rank on which the request costs least, in tokens: those of its prompt that the rank is not believed to
// have cached, those that wait there, and a few for each request that runs there, which slows all of them; more where
// the pool would overflow. Of equals the one with the fewest tokens, then requests, then the next in turn. The
// gateway's min_cost within one server.
std::optional<int64_t> choose_cache_aware(std::span<const RankLoad> ranks, int64_t previous);

}  // namespace sluice::engine
