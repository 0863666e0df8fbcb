// Whether a model can be divided among ranks as a layout says.
#pragma once

#include <optional>

#include "base/result.h"
#include "models/config.h"
#include "moe/expert_map.h"
#include "parallel/topology.h"

namespace sluice::models {

// kBadOption names the flag, what it would have to divide, and the nearest values that do.
Result<void> check_sharding(const ModelConfig& config, const parallel::Layout& layout,
                            const moe::ExpertPlacement& placement = {});

// Nothing where each expert is there once, in its order. kBadOption as make_expert_map() has it, and where there is
// nothing to place.
Result<std::optional<moe::ExpertMap>> expert_map_of(const ModelConfig& config, const parallel::Layout& layout,
                                                    const moe::ExpertPlacement& placement);

}  // namespace sluice::models
