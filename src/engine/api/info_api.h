// What the server says of itself: models, arguments, load.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> model_info(ApiCall& call);
net::Task<> server_info(ApiCall& call);
net::Task<> list_models(ApiCall& call);
net::Task<> find_model(ApiCall& call);  // /v1/models/{id}
net::Task<> get_load(ApiCall& call);
net::Task<> loads(ApiCall& call);  // /v1/loads

}  // namespace sluice::engine
