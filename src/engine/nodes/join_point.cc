#include "engine/nodes/join_point.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include "engine/nodes/interface.h"

namespace sluice::engine {

Result<JoinPoint> open_join_point(const EngineOptions& options) {
  constexpr int kBacklog = 1024;  // all nodes may come at once
  SLUICE_TRY(auto at, parse_endpoint("--dist-init-addr", *options.dist_init_addr));
  auto listening = net::listen_sockets(at.host, at.port, 1, kBacklog);
  if (!listening.ok()) {
    return Error{listening.error().code,
                 fmt::format("--dist-init-addr {} must be an address of node 0 with a port that is free: {}; the "
                             "interfaces of this host are {}",
                             *options.dist_init_addr, listening.error().message, in_words(network_interfaces()))};
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  ::getsockname(listening->sockets[0][0].get(), reinterpret_cast<sockaddr*>(&bound), &size);
  std::string reached = net::address_of(bound);
  SLUICE_TRY(auto address, rank_address_at_start(options, reached));
  return JoinPoint{.at = std::move(at),
                   .listening = std::move(*listening),
                   .reached = std::move(reached),
                   .rank_address = std::move(address)};
}

}  // namespace sluice::engine
