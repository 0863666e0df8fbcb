// The gateway's certificates: what it shows to clients, how it trusts workers and is trusted by them, and the same of
// an OTLP receiver.
#pragma once

#include <memory>

#include "base/result.h"
#include "gateway/options.h"

namespace sluice::net {
class TlsContext;
}

namespace sluice::gateway {

struct Certificates {
  std::shared_ptr<net::TlsContext> clients;  // null: clients speak plain HTTP
  std::shared_ptr<net::TlsContext> workers;  // null: nothing was given, the system's authorities count
  // Of OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY of the environment, with --enable-trace;
  // null likewise.
  std::shared_ptr<net::TlsContext> traces;

  // kBadOption, naming the flags and the file.
  static Result<Certificates> load(const GatewayOptions& options);
  bool any() const { return clients != nullptr || workers != nullptr || traces != nullptr; }
  // Reads files again that have changed; says so in the log, also if what is there now cannot be used. Any thread.
  void reload_changed() const;
};

}  // namespace sluice::gateway
