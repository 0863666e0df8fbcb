// POST /v1/responses for text. Nothing is stored: what asks for an earlier response is 404.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> responses(ApiCall& call);
net::Task<> stored_response(ApiCall& call);

}  // namespace sluice::engine
