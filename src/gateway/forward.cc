#include "gateway/forward.h"

#include <algorithm>
#include <set>

#include "gateway/process_mark.h"

namespace sluice::gateway {
namespace {

// Whoever writes the head upstream decides these: the client that sends it (Host, Content-Length), the server that
// answered "100 Continue" already (Expect), or the rule for keys (Authorization).
bool is_decided_here(std::string_view name) {
  constexpr std::string_view kNames[] = {"host", "content-length", "expect", "authorization", "http2-settings"};
  return std::ranges::any_of(kNames, [&](std::string_view known) { return net::iequals(known, name); });
}

// Fields that say something about one connection, and those that its Connection field names.
class ConnectionFields {
 public:
  explicit ConnectionFields(const net::Headers& headers) {
    for (const std::string_view name : headers.tokens("connection")) named_.insert(name);
  }
  bool contains(std::string_view name) const {
    // What follows a body is passed on, and so is its announcement.
    if (net::iequals(name, "trailer")) return false;
    return net::is_hop_by_hop(name) || named_.contains(name);
  }

 private:
  struct Less {
    bool operator()(std::string_view a, std::string_view b) const {
      return std::ranges::lexicographical_compare(a, b, {}, lower, lower);
    }
    static char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
  };
  std::set<std::string_view, Less> named_;  // a client may name thousands
};

}  // namespace

net::RequestHead upstream_head(const net::RequestHead& client, std::string_view api_key, int64_t rank, bool has_body,
                               bool keep_key) {
  net::RequestHead head;
  head.method = client.method;
  head.target = client.target;
  const std::string_view path = client.path();
  const bool is_rerank = path == "/rerank" || path == "/v1/rerank";
  if (path == "/rerank") head.target.insert(0, "/v1");
  const ConnectionFields of_connection(client.headers);
  for (const auto& [name, value] : client.headers) {
    // The body goes out whole, with its length: there is nothing that a trailer could follow.
    bool goes = !of_connection.contains(name) && !is_decided_here(name) && !net::iequals(name, "trailer");
    // Its answer is read here.
    if (is_rerank && net::iequals(name, "accept-encoding")) goes = false;
    if (goes) head.headers.add(name, value);
  }
  if (client.headers.has_token("te", "trailers")) {
    // Trailers are relayed, so the client's wish for them holds for this connection too (RFC 9110, 10.1.4).
    head.headers.add("TE", "trailers");
    head.headers.add("Connection", "TE");
  }
  // Newer engines take the rank from here rather than from the body.
  if (rank >= 0 && head.headers.has(kRankHeader)) head.headers.set(kRankHeader, std::to_string(rank));
  if (has_body && !head.headers.has("content-type")) head.headers.add("Content-Type", "application/json");
  if (!api_key.empty()) {
    head.headers.add("Authorization", fmt::format("Bearer {}", api_key));
  } else if (const auto key = client.headers.get("authorization"); key && !keep_key) {
    head.headers.add("Authorization", std::string(*key));
  }
  return head;
}

net::Headers relayed_headers(const net::Headers& headers, const net::Headers& ours) {
  net::Headers relayed;
  const ConnectionFields of_connection(headers);
  for (const auto& [name, value] : headers) {
    if (of_connection.contains(name) || net::iequals(name, "content-length")) continue;
    // Said to whoever asks the worker itself: another gateway would take one process of many for a restart of this one.
    if (net::iequals(name, ProcessMark::kHeader)) continue;
    // Both answers may depend on something: a list of names, to which each adds its own.
    if (ours.has(name) && !net::iequals(name, "vary")) continue;
    relayed.add(name, value);
  }
  return relayed;
}

}  // namespace sluice::gateway
