#include "engine/api/control_api.h"

#include <algorithm>

#include "engine/api/admin_api.h"
#include "engine/api/inbox.h"
#include "obs/exposition.h"
#include "protocol/fields.h"

namespace sluice::engine {
namespace {

net::Response empty(int status) { return {.status = status, .headers = {}, .body = ""}; }

// One token from every rank that is ready; the first that answers proves that the server serves. A busy rank answers
// without work.
class HealthProbe {
 public:
  explicit HealthProbe(ApiCall& call) : call_(call) {
    const auto ranks = call.api.backend.ranks();
    inbox_ = std::make_shared<Inbox>(call.exchange.loop(), std::vector<SampleMeter>(ranks.size()));
    call.exchange.on_client_gone([this] { inbox_->wake(); });
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (ranks[i].ready) ask(i);
    }
  }
  ~HealthProbe() {
    call_.exchange.on_client_gone({});
    inbox_->close();
    for (const auto& rid : asked_) call_.api.backend.abort(rid);
  }

  net::Task<bool> passes() {
    const TimePoint end = call_.api.clock.now() + call_.api.settings.health_timeout;
    size_t failures = 0;
    while (failures < asked_.size() && !call_.exchange.client_gone()) {
      const Duration left = end - call_.api.clock.now();
      if (left <= Duration{0}) co_return false;
      co_await inbox_->wait(left);
      for (const auto& [i, output] : inbox_->take()) {
        // Also one that somebody aborted: the rank has answered.
        if (output.finish.kind != FinishKind::kAbort || output.finish.status_code == 0) co_return true;
        ++failures;
      }
    }
    co_return false;
  }

 private:
  void ask(size_t rank) {
    GenerateRequest request;
    request.rid = fmt::format("HEALTH_CHECK_{}_{}", call_.api.new_rid(), rank);
    request.is_health_check = true;
    request.input_ids = {0};
    request.sampling.max_new_tokens = 1;
    request.sampling.temperature = 0;
    std::string rid = request.rid;
    const auto sent =
        call_.api.backend.submit(std::move(request), static_cast<int64_t>(rank),
                                 [inbox = inbox_, rank](RequestOutput output) { inbox->put(rank, std::move(output)); });
    if (sent.ok()) asked_.push_back(std::move(rid));
  }

  ApiCall& call_;
  std::shared_ptr<Inbox> inbox_;
  std::vector<std::string> asked_;
};

// R names R itself and R_0, R_1, ..., the members of its batch; R_1 does not name R_10.
bool names(std::string_view rid, std::string_view running) {
  if (!running.starts_with(rid)) return false;
  auto rest = running.substr(rid.size());
  if (rest.empty()) return true;
  if (rest.front() != '_' || rest.size() == 1) return false;
  rest.remove_prefix(1);
  return std::all_of(rest.begin(), rest.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace

net::Task<> health_generate(ApiCall& call) {
  if (call.api.status != ServerStatus::kUp) {
    co_await answer(call, empty(503));
    co_return;
  }
  HealthProbe probe(call);
  const bool healthy = co_await probe.passes();
  if (call.exchange.client_gone()) co_return;
  call.api.unhealthy = !healthy;
  co_await answer(call, empty(healthy ? 200 : 503));
}

net::Task<> health(ApiCall& call) {
  if (call.api.settings.health_generates) {
    co_await health_generate(call);
  } else {
    co_await answer(call, empty(call.api.status == ServerStatus::kUp ? 200 : 503));
  }
}

net::Task<> ping(ApiCall& call) { co_await answer(call, empty(200)); }

net::Task<> metrics_page(ApiCall& call) {
  if (!call.api.settings.metrics) {
    co_await answer(call, error_response(404, "metrics are off; start the server with --enable-metrics"));
    co_return;
  }
  auto page = net::Response::text(200, call.api.metrics.render());
  page.headers.set("Content-Type", std::string(obs::kExpositionContentType));
  co_await answer(call, std::move(page));
}

net::Task<> flush_cache(ApiCall& call) {
  const auto flushed = co_await control_ranks(call, ControlKind::kFlushCache, "", std::chrono::seconds(30));
  if (flushed.ok()) {
    co_await answer(call, net::Response::text(200, "Cache flushed.\n"));
  } else {
    const bool busy = flushed.error().code == ErrorCode::kUnavailable;
    co_await answer(call, net::Response::text(busy ? 400 : 500, flushed.error().message + "\n"));
  }
}

net::Task<> abort_request(ApiCall& call) {
  const auto text = co_await read_body(call);
  if (!text) co_return;
  const auto body = protocol::parse_object(*text);
  if (!body.ok()) {
    co_await answer_error(call, body.error());
    co_return;
  }
  protocol::Fields fields(*body);
  const auto rids = fields.texts("rid");
  const bool all = fields.boolean("abort_all", false);
  if (!fields.ok()) {
    co_await answer_error(call, fields.error());
    co_return;
  }
  if (all) {
    call.api.backend.abort_all();
  } else if (!rids.empty()) {
    for (const auto& running : call.api.backend.running()) {
      const bool named =
          std::ranges::any_of(rids, [&](const auto& rid) { return !rid.empty() && names(rid, running); });
      if (named) call.api.backend.abort(running);
    }
  }
  co_await answer(call, empty(200));
}

}  // namespace sluice::engine
