// Whether a model can be divided among ranks as a layout says.
#pragma once

#include "base/result.h"
#include "models/config.h"
#include "parallel/topology.h"

namespace sluice::models {

// kBadOption names the flag, what it would have to divide, and the nearest values that do.
Result<void> check_sharding(const ModelConfig& config, const parallel::Layout& layout);

}  // namespace sluice::models
