#include "gateway/health_port.h"

#include <algorithm>

#include "gateway/error_shape.h"
#include "gateway/kv_events/kv_caches.h"
#include "net/server.h"

namespace sluice::gateway {
namespace {

net::Response answer(Context& context, const net::RequestHead& request) {
  const std::string_view path = request.path();
  const bool is_ready = path == "/readiness";
  if (!is_ready && path != "/health" && path != "/liveness") {
    return error_response(404, "unknown_url", fmt::format("there is nothing at {} on this port", path));
  }
  if (request.method != "GET" && request.method != "HEAD") {
    auto refused = error_response(405, "method_not_allowed", fmt::format("{} takes GET", path));
    refused.headers.add("Allow", "GET, HEAD");
    return refused;
  }
  return is_ready ? readiness_of(context) : net::Response::text(200, "OK");
}

net::Task<> serve(Context& context, net::ServerExchange& exchange) {
  auto response = answer(context, exchange.request());
  const auto sent = co_await exchange.respond(std::move(response));
  (void)sent;  // who asks and does not wait is nobody's problem
}

}  // namespace

net::Response readiness_of(Context& context) {
  const auto workers = context.fleet.snapshot();
  const auto is_healthy = [](const WorkerPtr& worker) { return worker->healthy && !worker->draining; };
  const auto healthy = std::ranges::count_if(*workers, is_healthy);
  const auto not_ready = [](const char* reason) {
    return net::Response::json(503, fmt::format(R"({{"status":"not ready","reason":"{}"}})", reason));
  };
  if (context.draining) return not_ready("draining");
  if (healthy < context.options.min_ready_workers) return not_ready("insufficient healthy workers");
  std::string caches;
  if (context.kv != nullptr) {
    const bool are_known = std::ranges::all_of(*workers, [&](const WorkerPtr& worker) {
      return !is_healthy(worker) || context.kv->mode_of(worker->number) != KvCaches::Mode::kBelief;
    });
    caches = fmt::format(R"(,"cache_mode":"{}")", are_known ? "events" : "approximate");
  }
  return net::Response::json(200, fmt::format(R"({{"status":"ready","healthy_workers":{},"total_workers":{}{}}})",
                                              healthy, workers->size(), caches));
}

class HealthPort::Impl {
 public:
  explicit Impl(Context& context)
      : loops(1, "health"), server(loops, net::ServerOptions{}, [&context](net::ServerExchange& exchange) {
          return serve(context, exchange);
        }) {}

  net::LoopGroup loops;
  net::Server server;
  uint16_t port = 0;
};

Result<std::unique_ptr<HealthPort>> HealthPort::start(Context& context, const std::string& host, uint16_t port,
                                                      std::vector<net::Socket> inherited) {
  auto impl = std::make_unique<Impl>(context);
  SLUICE_TRY(impl->port, impl->server.listen(host, port, std::move(inherited)));
  return std::unique_ptr<HealthPort>(new HealthPort(std::move(impl)));
}

HealthPort::HealthPort(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HealthPort::~HealthPort() = default;
uint16_t HealthPort::port() const { return impl_->port; }
net::Server& HealthPort::server() { return impl_->server; }

}  // namespace sluice::gateway
