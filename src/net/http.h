// What an HTTP/1.1 message is made of, for the server and the client.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace sluice::net {

// ASCII case-insensitive comparison.
bool iequals(std::string_view a, std::string_view b);

// Header fields in the order of arrival; duplicates are kept. Names keep their spelling, lookups ignore case.
class Headers {
 public:
  using Field = std::pair<std::string, std::string>;

  Headers() = default;
  Headers(std::initializer_list<Field> fields) : fields_(fields) {}

  void add(std::string name, std::string value) {
    constexpr size_t kUsual = 4;
    if (fields_.capacity() == 0) fields_.reserve(kUsual);
    fields_.emplace_back(std::move(name), std::move(value));
  }
  // Replaces every field of that name by one.
  void set(std::string_view name, std::string value);
  void remove(std::string_view name);
  // The first field of that name.
  std::optional<std::string_view> get(std::string_view name) const;
  bool has(std::string_view name) const { return get(name).has_value(); }
  // True if a comma-separated list field holds the token ("Connection: keep-alive, Upgrade").
  bool has_token(std::string_view name, std::string_view token) const;
  // Of all list fields of that name; none is empty.
  std::vector<std::string_view> tokens(std::string_view name) const;

  auto begin() const { return fields_.begin(); }
  auto end() const { return fields_.end(); }
  size_t size() const { return fields_.size(); }
  bool empty() const { return fields_.empty(); }
  void clear() { fields_.clear(); }

 private:
  std::vector<Field> fields_;
};

struct RequestHead {
  std::string method;
  std::string target;  // origin form, as sent: "/v1/models?x=1"
  int minor_version = 1;
  Headers headers;

  std::string_view path() const;   // target up to '?'
  std::string_view query() const;  // after '?', or empty
};

// The decoded value of `key` in a query string.
std::optional<std::string> query_value(std::string_view query, std::string_view key);
std::string percent_decode(std::string_view text);

struct ResponseHead {
  int status = 200;
  Headers headers;
  std::optional<std::string> reason = std::nullopt;  // as the other side sent it; none = the usual one of the status
};

// A response whose body is at hand.
struct Response {
  int status = 200;
  Headers headers;
  std::string body;
  std::optional<std::string> reason = std::nullopt;
  Headers trailers = {};  // after a chunked body; a client of HTTP/1.0 does not get them

  static Response text(int status, std::string body);
  static Response json(int status, std::string body);
};

std::string_view reason_phrase(int status);

// Hop-by-hop fields (RFC 9110, 7.6.1), which a gateway never forwards.
bool is_hop_by_hop(std::string_view name);

// "http://host:port/prefix", or https. No scheme means http://; without a port it is 80, or 443 for https.
struct Url {
  std::string host;  // without brackets
  uint16_t port = 80;
  std::string path;               // prefix, without a trailing slash; "" for none
  std::string authority() const;  // host:port, with brackets around IPv6
  std::string to_string() const;  // canonical
  bool tls = false;
};
Result<Url> parse_url(std::string_view text);

}  // namespace sluice::net
