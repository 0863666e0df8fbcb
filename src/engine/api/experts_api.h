// Endpoints that record what the experts of all ranks get (engine-reference.md 6.7).
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

net::Task<> start_expert_record(ApiCall& call);
net::Task<> stop_expert_record(ApiCall& call);
net::Task<> dump_expert_record(ApiCall& call);

}  // namespace sluice::engine
