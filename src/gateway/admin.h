// The routes that the gateway answers itself or asks every worker for: health, information, workers, loads, fan-outs.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "gateway/access.h"
#include "gateway/ask.h"
#include "gateway/context.h"
#include "gateway/loop_state.h"
#include "net/http.h"

namespace sluice::gateway {

struct AdminCall;

struct AdminRoute {
  std::string_view label;    // the path; one that ends in '/' stands for everything below it
  std::string_view methods;  // "GET, POST"
  Access access = Access::kControl;
  net::Task<net::Response> (*answer)(AdminCall& call) = nullptr;
  bool large_body = false;     // as large as a request's may be: weights
  bool changes_fleet = false;  // unless it is a GET
};

// What one call has at hand; lives until it is answered.
struct AdminCall {
  Context& context;
  LoopState& loop;
  const std::vector<std::unique_ptr<LoopState>>& loops;  // all of them, each touched on its own thread only
  const net::RequestHead& head;
  const std::string& path;
  std::string body;
  // Ended when the client has left, or is cut off: so do the questions that are asked for it.
  const std::shared_ptr<Interruption> interruption = std::make_shared<Interruption>();
  bool is_relayed = false;  // set by the handler: the answer is a worker's own, and its X-SMG-Error-Code too
};

// Null if there is none.
const AdminRoute* find_admin_route(std::string_view path);
net::Task<net::Response> answer_admin(AdminCall& call);

}  // namespace sluice::gateway
