// --health-check-port: the health routes alone, on a port and a thread of their own, so that whoever checks the gateway
// is neither delayed by its traffic nor let at anything else.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "gateway/context.h"

namespace sluice::gateway {

// The answer to GET /readiness (gateway-reference.md 3.5). Any thread.
net::Response readiness_of(Context& context);

class HealthPort {
 public:
  // `context` outlives it. kAlreadyExists if the port is taken.
  static Result<std::unique_ptr<HealthPort>> start(Context& context, const std::string& host, uint16_t port);
  ~HealthPort();

  uint16_t port() const;

 private:
  class Impl;
  explicit HealthPort(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::gateway
