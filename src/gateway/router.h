// What comes in on the gateway's port: which path is what, who may call it, and what every answer carries.
#pragma once

#include <memory>
#include <vector>

#include "gateway/access.h"
#include "gateway/context.h"
#include "gateway/exchange.h"
#include "gateway/loop_state.h"
#include "net/server.h"

namespace sluice::gateway {

class Router {
 public:
  // Both outlive this. `loops` has one entry per loop of the server.
  Router(Context& context, Gatekeeper gatekeeper, std::vector<std::unique_ptr<LoopState>>& loops);
  net::Task<> handle(net::ServerExchange& client);

 private:
  LoopState& state_of(net::EventLoop& loop);
  std::string request_id(const net::RequestHead& head, std::string_view path, LoopState& loop) const;
  // To the access log: what was answered without an exchange.
  void log_own_answer(const net::ServerExchange& client, std::string_view id, TimePoint begun, const Exchange::End& end,
                      size_t bytes) const;
  void add_cors(const net::RequestHead& head, net::Headers& headers) const;

  Context& context_;
  const Gatekeeper gatekeeper_;
  std::vector<std::unique_ptr<LoopState>>& loops_;
  obs::Gauge active_;
};

}  // namespace sluice::gateway
