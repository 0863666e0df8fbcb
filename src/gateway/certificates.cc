#include "gateway/certificates.h"

#include "net/tls.h"
#include "obs/trace_exporter.h"

namespace sluice::gateway {
namespace {

Result<std::shared_ptr<net::TlsContext>> load_files(net::TlsFiles files, std::string_view flags) {
  auto context = net::TlsContext::load(std::move(files));
  if (!context.ok()) return Error{ErrorCode::kBadOption, fmt::format("{}: {}", flags, context.error().message)};
  return context;
}

void reload(net::TlsContext* context, std::string_view whose) {
  if (context != nullptr) net::reload_certificates(*context, whose);
}

}  // namespace

Result<Certificates> Certificates::load(const GatewayOptions& options) {
  Certificates loaded;
  if (options.tls_cert_path) {
    SLUICE_TRY(loaded.clients, load_files({.role = net::TlsFiles::Role::kServer,
                                           .certificate = *options.tls_cert_path,
                                           .key = options.tls_key_path.value_or("")},
                                          "--tls-cert-path, --tls-key-path"));
  }
  if (options.client_cert_path || !options.ca_cert_paths.empty()) {
    SLUICE_TRY(loaded.workers, load_files({.role = net::TlsFiles::Role::kClient,
                                           .certificate = options.client_cert_path.value_or(""),
                                           .key = options.client_key_path.value_or(""),
                                           .authorities = options.ca_cert_paths},
                                          "--client-cert-path, --client-key-path, --ca-cert-paths"));
  }
  if (options.enable_trace) {
    SLUICE_TRY(loaded.traces, obs::trace_certificates());
  }
  return loaded;
}

void Certificates::reload_changed() const {
  reload(clients.get(), "clients");
  reload(workers.get(), "workers");
  reload(traces.get(), "the receiver of traces");
}

}  // namespace sluice::gateway
