// For tests: a worker that answers what a test says, for answers that no engine gives by itself.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "net/server.h"
#include "testing/sim_worker.h"

namespace sluice::gateway {

// Health checks pass, and what else is a GET for /v1/models is not found; the rest is the test's.
class ScriptedWorker {
 public:
  using Received = sluice::testing::SimReceived;
  using Serve = std::function<net::Task<>(net::ServerExchange&, const Received&)>;
  using Answer = std::function<net::Response(const Received&)>;

  ScriptedWorker(net::LoopGroup& loops, Serve serve)
      : serve_(std::move(serve)),
        server_(loops, net::ServerOptions{}, [this](net::ServerExchange& exchange) { return handle(exchange); }),
        port_(server_.listen("127.0.0.1", 0).value()) {}
  ScriptedWorker(net::LoopGroup& loops, Answer answer)
      : ScriptedWorker(loops, Serve([this](net::ServerExchange& exchange, const Received& received) {
                         return respond(exchange, received);
                       })) {
    answer_ = std::move(answer);
  }

  std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }
  // Without health checks and questions for the models.
  std::vector<Received> received() const {
    const std::lock_guard lock(mutex_);
    return received_;
  }

 private:
  net::Task<> handle(net::ServerExchange& exchange) {
    const auto& head = exchange.request();
    const std::string_view path = head.path();
    if (path == "/health" || path == "/v1/models") {
      auto response = net::Response::text(path == "/health" ? 200 : 404, "");
      co_await exchange.respond(std::move(response));
      co_return;
    }
    auto body = co_await exchange.read_body(size_t{64} << 20);
    if (!body.ok()) co_return;
    const Received received{head.method, head.target, head.headers, std::move(body).value()};
    {
      const std::lock_guard lock(mutex_);
      received_.push_back(received);
    }
    co_await serve_(exchange, received);
  }
  net::Task<> respond(net::ServerExchange& exchange, const Received& received) {
    auto response = answer_(received);
    co_await exchange.respond(std::move(response));
  }

  Answer answer_;
  const Serve serve_;
  mutable std::mutex mutex_;  // guards received_
  std::vector<Received> received_;
  net::Server server_;
  const uint16_t port_;
};

}  // namespace sluice::gateway
