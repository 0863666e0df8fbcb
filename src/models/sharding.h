// Whether a model can be divided among ranks as a layout says.
#pragma once

#include <optional>

#include "base/result.h"
#include "models/config.h"
#include "moe/expert_map.h"
#include "parallel/topology.h"

namespace sluice::models {

// Where the experts are; nothing where each is there once, in its order. kBadOption names the flag, what it would have
// to divide, and the nearest values that do, or is make_expert_map()'s.
Result<std::optional<moe::ExpertMap>> check_sharding(const ModelConfig& config, const parallel::Layout& layout,
                                                     const moe::ExpertPlacement& placement = {});

}  // namespace sluice::models
