// --deterministic: greedy tokens are those of one rank with the whole model, in every layout, and a request repeats.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

// What would make results depend on chance, or on what other requests do, is refused by the flag's name, and --dtype
// auto settled; as lines for the log. Sums over ranks go in their order in float32 whatever the flag. After
// adjust_experts().
Result<std::vector<std::string>> settle_deterministic(EngineOptions& options);

// --dtype as it will be: float32 in place of auto with --deterministic.
std::string settled_dtype(const EngineOptions& options);
// --deepep-mode as it will be: normal in place of auto with --deterministic. adjust_experts() sets it.
std::string settled_deepep_mode(const EngineOptions& options);

// Of sampling for requests that bring none; absent: each has its own.
std::optional<uint64_t> common_seed(const EngineOptions& options);

}  // namespace sluice::engine
