// POST /generate: SGLang's native endpoint.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> generate(ApiCall& call);

}  // namespace sluice::engine
