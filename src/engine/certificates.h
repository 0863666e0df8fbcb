// The certificate that the engine shows to its clients.
#pragma once

#include <memory>
#include <string_view>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::net {
class EventLoop;
class TlsContext;
}  // namespace sluice::net

namespace sluice::engine {

// Null without --ssl-certfile. kBadOption, naming the flags and the file.
Result<std::shared_ptr<net::TlsContext>> load_certificate(const EngineOptions& options);
// Looks every 10 s whether the files have changed, until the loop ends. `whose` (a literal) is for the log.
void keep_certificate_fresh(std::shared_ptr<net::TlsContext> certificate, net::EventLoop& loop, std::string_view whose);

}  // namespace sluice::engine
