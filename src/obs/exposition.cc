#include "obs/exposition.h"

#include "net/server.h"

namespace sluice::obs {
namespace {

net::Response answer(const Metrics& metrics, const net::RequestHead& request) {
  if (request.path() != "/metrics") return net::Response::text(404, "the metrics are at /metrics\n");
  if (request.method != "GET" && request.method != "HEAD") {
    auto refused = net::Response::text(405, "");
    refused.headers.set("Allow", "GET, HEAD");
    return refused;
  }
  auto page = net::Response::text(200, metrics.render());
  page.headers.set("Content-Type", kExpositionContentType);
  return page;
}

net::Task<> serve(const Metrics& metrics, net::ServerExchange& exchange) {
  auto response = answer(metrics, exchange.request());
  // A scraper that has gone away is nobody's problem.
  auto sent = co_await exchange.respond(std::move(response));
  (void)sent;
}

}  // namespace

class ExpositionServer::Impl {
 public:
  explicit Impl(const Metrics& metrics)
      : loops(1, "metrics"), server(loops, net::ServerOptions{}, [&metrics](net::ServerExchange& exchange) {
          return serve(metrics, exchange);
        }) {}

  net::LoopGroup loops;
  net::Server server;
  uint16_t port = 0;
};

Result<std::unique_ptr<ExpositionServer>> ExpositionServer::start(const Metrics& metrics, const std::string& host,
                                                                  uint16_t port, std::vector<net::Socket> inherited) {
  auto impl = std::make_unique<Impl>(metrics);
  SLUICE_TRY(impl->port, impl->server.listen(host, port, std::move(inherited)));
  return std::unique_ptr<ExpositionServer>(new ExpositionServer(std::move(impl)));
}

ExpositionServer::ExpositionServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpositionServer::~ExpositionServer() = default;
uint16_t ExpositionServer::port() const { return impl_->port; }
net::Server& ExpositionServer::server() { return impl_->server; }

}  // namespace sluice::obs
