#include "gateway/forward.h"

namespace sluice::gateway {
namespace {

bool is_forwarded(std::string_view name) {
  constexpr std::string_view kForwarded[] = {"content-type", "accept",     "x-request-id",     "x-correlation-id",
                                             "traceparent",  "tracestate", "x-smg-routing-key"};
  for (const auto forwarded : kForwarded) {
    if (net::iequals(name, forwarded)) return true;
  }
  constexpr std::string_view kPrefix = "x-request-id-";
  return name.size() > kPrefix.size() && net::iequals(name.substr(0, kPrefix.size()), kPrefix);
}

}  // namespace

net::RequestHead upstream_head(const net::RequestHead& client, const Worker& worker, bool has_body) {
  net::RequestHead head;
  head.method = client.method;
  head.target = client.target;
  for (const auto& [name, value] : client.headers) {
    if (is_forwarded(name)) head.headers.add(name, value);
  }
  if (has_body && !head.headers.has("content-type")) head.headers.add("Content-Type", "application/json");
  if (!worker.api_key.empty()) {
    head.headers.add("Authorization", "Bearer " + worker.api_key);
  } else if (const auto key = client.headers.get("authorization")) {
    head.headers.add("Authorization", std::string(*key));
  }
  return head;
}

net::Headers relayed_headers(const net::Headers& headers, const net::Headers& ours) {
  net::Headers relayed;
  for (const auto& [name, value] : headers) {
    if (net::is_hop_by_hop(name) || net::iequals(name, "content-length") || ours.has(name)) continue;
    relayed.add(name, value);
  }
  return relayed;
}

}  // namespace sluice::gateway
