// What of a message goes on, in both directions: everything but what belongs to one of
// the two connections.
#pragma once

#include "gateway/access.h"
#include "gateway/fleet.h"
#include "net/http.h"

namespace sluice::gateway {

// Of a client that asks for a data-parallel rank.
inline constexpr std::string_view kRankHeader = "X-Data-Parallel-Rank";

// The head that the worker gets: the client's method, target and headers, without those of its connection, and exactly
// one Authorization: the worker's key if it has one, else the client's. A rank that it names is the worker's.
// `api_key` empty: the worker asks for none. `rank` < 0: it is all of its engine.
// `keep_key`: the client's key is one of the control plane, and stays here.
net::RequestHead upstream_head(const net::RequestHead& client, std::string_view api_key, int64_t rank, bool has_body,
                               bool keep_key = false);
// `gatekeeper`: knows the keys of the control plane; null: there are none.
inline net::RequestHead upstream_head(const net::RequestHead& client, const Worker& worker, bool has_body,
                                      const Gatekeeper* gatekeeper = nullptr) {
  const bool keep_key = gatekeeper != nullptr && gatekeeper->has_control_key(client);
  return upstream_head(client, worker.api_key(), worker.dp.rank, has_body, keep_key);
}

// Of a worker's answer everything but what belongs to its connection, and what `ours` says already.
net::Headers relayed_headers(const net::Headers& headers, const net::Headers& ours);

}  // namespace sluice::gateway
