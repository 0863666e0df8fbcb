// Flags of the SGLang gateways that are not built here: start-up ends with one line
// that says what to do instead.
#pragma once

#include <vector>

#include "base/options.h"

namespace sluice::gateway {

std::vector<RejectedFlag> rejected_flags();

}  // namespace sluice::gateway
