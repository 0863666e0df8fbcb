// Endpoints that record what the experts of all ranks get.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> start_expert_record(ApiCall& call);
net::Task<> stop_expert_record(ApiCall& call);
net::Task<> dump_expert_record(ApiCall& call);

}  // namespace sluice::engine
