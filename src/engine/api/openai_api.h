// POST /v1/completions and POST /v1/chat/completions.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> completions(ApiCall& call);
net::Task<> chat_completions(ApiCall& call);

}  // namespace sluice::engine
