// /tokenize and /detokenize.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> tokenize(ApiCall& call);
net::Task<> detokenize(ApiCall& call);

}  // namespace sluice::engine
