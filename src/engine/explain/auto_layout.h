// `sluice server --layout auto`: the layout that engine/explain predicts to be the fastest on this machine.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "engine/explain/hardware.h"
#include "engine/options.h"

namespace sluice::engine {

// Sets --tp-size, --dp-size, --enable-dp-attention, --ep-size, --moe-a2a-backend and what goes with them; a --tp-size
// above 1 stays, and only instances of so many ranks are weighed. Returns lines for the log: what was assumed, what was
// chosen, and what came next. kBadOption where one of those is given otherwise, kExhausted where the model fits in no
// layout.
Result<std::vector<std::string>> choose_layout(EngineOptions& options, const Hardware& machine);

}  // namespace sluice::engine
