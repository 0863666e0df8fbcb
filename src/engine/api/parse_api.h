// /parse_function_call and /separate_reasoning: what the parsers make of a text that a client has.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> parse_function_call(ApiCall& call);
net::Task<> separate_reasoning(ApiCall& call);

}  // namespace sluice::engine
