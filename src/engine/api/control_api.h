// Endpoints that look after the server: health, metrics, cache, aborts.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> health(ApiCall& call);
net::Task<> health_generate(ApiCall& call);
net::Task<> ping(ApiCall& call);
net::Task<> metrics_page(ApiCall& call);
net::Task<> flush_cache(ApiCall& call);
net::Task<> abort_request(ApiCall& call);

}  // namespace sluice::engine
