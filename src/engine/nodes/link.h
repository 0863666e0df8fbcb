// The connection between node 0 of an instance and each of its other hosts: JSON messages, a line each, over TCP. The
// connection is the session: whoever is at its other end is there as long as it lasts and says something.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "net/listen.h"

namespace sluice::engine {

inline constexpr Duration kSignOfLifeEvery = std::chrono::seconds(1);
// As long as ranks wait for each other in a step (GroupOptions).
inline constexpr Duration kNodeSilenceLimit = std::chrono::seconds(5);

// Of one try to reach a node, and between two.
inline constexpr Duration kNodeConnectLimit = std::chrono::seconds(3);
inline constexpr Duration kNodeRetryEvery = std::chrono::seconds(1);

struct Endpoint {
  std::string host;  // a name or an address, without brackets
  uint16_t port = 0;
};
// "host:port" or "[address]:port"; kBadOption names `flag`.
Result<Endpoint> parse_endpoint(std::string_view flag, const std::string& text);
// With brackets where they are needed.
std::string to_string(const Endpoint& endpoint);

// Used by one thread at a time.
class NodeLink {
 public:
  // Tries each address of the host, at most `bound` together. kNotFound: the name has none; kRefused, kTimeout and
  // kUnavailable name the address.
  static Result<NodeLink> connect(const Endpoint& to, Duration bound);
  // A connection that was accepted.
  explicit NodeLink(net::Socket socket);

  int fd() const { return socket_.get(); }  // readable: receive() has something
  const std::string& local_address() const { return local_; }
  const std::string& peer_address() const { return peer_; }

  // Waits at most kNodeSilenceLimit for the other side to take it. kReset, kTimeout.
  Result<void> send(const nlohmann::json& message);
  // The next message, if all of it is there. kReset: the connection has ended; kProtocol: what came is no message.
  Result<std::optional<nlohmann::json>> receive();
  // The next message; kTimeout says that it waited for `what`.
  Result<nlohmann::json> receive(Duration bound, std::string_view what);

 private:
  net::Socket socket_;
  std::string local_;
  std::string peer_;
  std::string unread_;
};

}  // namespace sluice::engine
