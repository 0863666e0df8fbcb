// A worker as GET /workers shows it.
#pragma once

#include <string>
#include <string_view>

#include "gateway/fleet.h"

namespace sluice::gateway {

// Written out at once and without a tree: ten thousand of them are asked for in one piece. `kv_events` is a JSON
// object. `with_rules`: of one alone. Any thread.
void append_worker_json(std::string& out, const Worker& worker, std::string_view kv_events, bool with_rules = false);

}  // namespace sluice::gateway
