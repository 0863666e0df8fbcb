// GET and POST /get_weights_by_name: what the ranks compute with.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> get_weights_by_name(ApiCall& call);

}  // namespace sluice::engine
