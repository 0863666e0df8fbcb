// What of a head goes on to the other side (gateway-reference.md 3.4, 1.1).
#pragma once

#include "gateway/fleet.h"
#include "net/http.h"

namespace sluice::gateway {

// The head that the worker gets: the client's method and target, the headers of an allow-list, and exactly one
// Authorization: the worker's key if it has one, else the client's.
net::RequestHead upstream_head(const net::RequestHead& client, const Worker& worker, bool has_body);

// Of a worker's answer everything but what belongs to its connection, and what `ours` says already.
net::Headers relayed_headers(const net::Headers& headers, const net::Headers& ours);

}  // namespace sluice::gateway
