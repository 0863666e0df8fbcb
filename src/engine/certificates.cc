#include "engine/certificates.h"

#include "net/loop.h"
#include "net/tls.h"

namespace sluice::engine {
namespace {

constexpr Duration kLookEvery = std::chrono::seconds(10);

net::Task<> look(std::shared_ptr<net::TlsContext> certificate, net::EventLoop& loop, std::string_view whose) {
  for (;;) {
    co_await loop.sleep(kLookEvery);
    net::reload_certificates(*certificate, whose);
  }
}

}  // namespace

Result<std::shared_ptr<net::TlsContext>> load_certificate(const EngineOptions& options) {
  if (!options.ssl_certfile) return std::shared_ptr<net::TlsContext>();
  net::TlsFiles files{.role = net::TlsFiles::Role::kServer,
                      .certificate = *options.ssl_certfile,
                      .key = options.ssl_keyfile.value_or(""),
                      .key_password = options.ssl_keyfile_password.value_or("")};
  if (options.ssl_ca_certs) files.authorities.push_back(*options.ssl_ca_certs);
  auto loaded = net::TlsContext::load(std::move(files));
  if (loaded.ok()) return loaded;
  return Error{ErrorCode::kBadOption,
               fmt::format("--ssl-certfile, --ssl-keyfile, --ssl-ca-certs: {}", loaded.error().message)};
}

void keep_certificate_fresh(std::shared_ptr<net::TlsContext> certificate, net::EventLoop& loop,
                            std::string_view whose) {
  if (certificate == nullptr) return;
  loop.spawn([certificate = std::move(certificate), &loop, whose] { return look(certificate, loop, whose); });
}

}  // namespace sluice::engine
