// --health-check-port: the health routes alone, on a port and a thread of their own, so that whoever checks the gateway
// is neither delayed by its traffic nor let at anything else.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gateway/context.h"
#include "net/listen.h"

namespace sluice::net {
class Server;
}

namespace sluice::gateway {

// The answer to GET /readiness. Any thread.
net::Response readiness_of(Context& context);

class HealthPort {
 public:
  // `context` outlives it. On the sockets of a predecessor if there are any. kAlreadyExists if the port is taken.
  static Result<std::unique_ptr<HealthPort>> start(Context& context, const std::string& host, uint16_t port,
                                                   std::vector<net::Socket> inherited = {});
  ~HealthPort();

  uint16_t port() const;
  net::Server& server();

 private:
  class Impl;
  explicit HealthPort(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::gateway
