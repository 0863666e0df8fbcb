// Unary calls of gRPC over HTTP/2, with TLS or without: one connection, one call at a time. Enough for an exporter;
// libnghttp2 does the protocol.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "net/loop.h"

namespace sluice::net {
class TlsContext;
}

namespace sluice::obs {

struct GrpcAnswer {
  int status = 0;       // grpc-status: 0 = OK
  std::string message;  // grpc-message
  std::string body;     // the serialized message
};

// Loop thread only, the destructor too; no call is under way then.
class GrpcClient {
 public:
  // `loop` outlives this. Without `tls` it speaks plain HTTP/2.
  GrpcClient(net::EventLoop& loop, std::string host, uint16_t port, std::shared_ptr<net::TlsContext> tls);
  ~GrpcClient();

  // Connects if there is no connection; one that was kept and turns out to be dead is replaced once. Errors: kRefused,
  // kReset, kTimeout, kNotFound (name resolution), kProtocol.
  net::Task<Result<GrpcAnswer>> call(std::string path, std::string message, Duration deadline);
  // A call that is under way fails.
  void close();

 private:
  class Connection;
  net::Task<Result<GrpcAnswer>> call_once(const std::string& path, const std::string& message, Duration deadline);

  net::EventLoop& loop_;
  const std::string host_;
  const uint16_t port_;
  const std::shared_ptr<net::TlsContext> tls_;
  std::shared_ptr<Connection> connection_;
};

}  // namespace sluice::obs
