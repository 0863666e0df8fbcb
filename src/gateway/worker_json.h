// A worker as GET /workers shows it (gateway-reference.md 3.7).
#pragma once

#include <string>

#include "gateway/fleet.h"

namespace sluice::gateway {

// Written out at once and without a tree: ten thousand of them are asked for in one piece. Any thread.
void append_worker_json(std::string& out, const Worker& worker);

}  // namespace sluice::gateway
