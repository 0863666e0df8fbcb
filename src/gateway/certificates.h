// The gateway's certificates: what it shows to clients, and how it trusts workers and is trusted by them.
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

  // kBadOption, naming the flags and the file.
  static Result<Certificates> load(const GatewayOptions& options);
  bool any() const { return clients != nullptr || workers != nullptr; }
  // Reads files again that have changed; says so in the log, also if what is there now cannot be used. Any thread.
  void reload_changed() const;
};

}  // namespace sluice::gateway
