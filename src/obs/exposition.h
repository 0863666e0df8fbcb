// GET /metrics on a port of its own, rendered on a thread of its own, so that a scraper never delays a request and a
// saturated data path never delays a scraper.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "net/listen.h"
#include "obs/metrics.h"

namespace sluice::net {
class Server;
}

namespace sluice::obs {

class ExpositionServer {
 public:
  // `metrics` outlives the server. Port 0 takes a free one. On the sockets of a predecessor if there are any.
  // kAlreadyExists if the port is taken.
  static Result<std::unique_ptr<ExpositionServer>> start(const Metrics& metrics, const std::string& host, uint16_t port,
                                                         std::vector<net::Socket> inherited = {});
  ~ExpositionServer();

  uint16_t port() const;
  net::Server& server();

 private:
  class Impl;
  explicit ExpositionServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Content-Type of Metrics::render(), for servers that show it on a route of theirs.
inline constexpr const char* kExpositionContentType = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace sluice::obs
