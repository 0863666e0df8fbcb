// The routes under /debug: what the gateway is doing, and why. Texts of prompts are never shown, only how long they are
// and a hash of them.
#pragma once

#include "gateway/admin.h"

namespace sluice::gateway {

// GET /debug/why/{request_id}: one of the latest requests.
net::Task<net::Response> debug_why(AdminCall& call);
// GET /debug/requests: those under way, and the latest that have ended.
net::Task<net::Response> debug_requests(AdminCall& call);
// GET /debug/index: the prefix index.
net::Task<net::Response> debug_index(AdminCall& call);
// GET /debug/workers: what the latest requests say of each worker.
net::Task<net::Response> debug_workers(AdminCall& call);

}  // namespace sluice::gateway
