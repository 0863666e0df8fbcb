// /v1/responses for text: answers that may be asked for again, made in the background, and gone on from.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> responses(ApiCall& call);
// GET and DELETE /v1/responses/{id}, POST /v1/responses/{id}/cancel.
net::Task<> stored_response(ApiCall& call);

}  // namespace sluice::engine
