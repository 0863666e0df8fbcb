#include "testing/sim_worker.h"

#include "base/check.h"
#include "base/rng.h"
#include "testing/sim_worker_impl.h"

namespace sluice::testing {

using net::Response;
using net::ServerExchange;
using net::Task;

namespace {

SimWorkerOptions settled(SimWorkerOptions options) {
  if (!options.cache) return options;
  const CacheWorkerRules& rules = options.cache->rules;
  options.engine.block_size = rules.block_tokens;
  options.engine.kv_tokens = rules.kv_blocks * rules.block_tokens;
  options.engine.max_running = rules.decode_slots;
  return options;
}

}  // namespace

SimWorker::Impl::Impl(net::LoopGroup& loops, SimWorkerOptions options)
    : loops_(loops), options_(settled(std::move(options))) {
  for (const SimApi api : {SimApi::kGenerate, SimApi::kCompletions, SimApi::kChat}) {
    if (options_.canned) canned_.push_back(make_canned(options_, api));
  }
  port_ = options_.port;
}

SimWorker::Impl::~Impl() {
  {
    const std::lock_guard lock(mu_);
    ending_ = true;
  }
  ended_.notify_all();
  if (pause_.joinable()) pause_.join();
  stop();
}

Result<void> SimWorker::Impl::start() {
  const std::lock_guard life(life_mu_);
  if (server_) return Error{ErrorCode::kAlreadyExists, "the worker runs already"};
  std::vector<std::shared_ptr<SimRank>> ranks;
  for (int64_t i = 0; i < options_.dp_size; ++i) {
    ranks.push_back(options_.cache ? std::make_shared<SimRank>(options_.engine, *options_.cache, options_.time_scale)
                                   : std::make_shared<SimRank>(options_.engine));
  }
  {
    const std::lock_guard lock(mu_);
    ranks_ = std::move(ranks);
  }
  net::ServerOptions server_options;
  server_options.idle_timeout = options_.idle_timeout;
  if (options_.names_process) {
    if (process_.empty() || !options_.keeps_name) process_ = fmt::format("{:016x}", random_seed());
    server_options.headers.add("X-Sluice-Process", process_);
  }
  auto server = std::make_unique<net::Server>(loops_, server_options,
                                              [this](ServerExchange& exchange) { return handle(exchange); });
  SLUICE_TRY(port_, server->listen(options_.host, port_));
  server_ = std::move(server);
  return {};
}

void SimWorker::Impl::stop() {
  const std::lock_guard life(life_mu_);
  if (!server_) return;
  server_->stop_accepting();
  server_->drain(Duration::zero());
  server_.reset();
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    rank->stopped = true;
  }
}

bool SimWorker::Impl::running() const {
  const std::lock_guard lock(life_mu_);
  return server_ != nullptr;
}

void SimWorker::Impl::pause_for(Duration duration) {
  const std::lock_guard lock(mu_);
  if (pausing_ || ending_) return;
  if (pause_.joinable()) pause_.join();
  pausing_ = true;
  // A thread of its own: it waits for the handler that asked for this.
  pause_ = std::thread([this, duration] {
    {
      std::unique_lock wait(mu_);  // long enough for its answer to get out
      ended_.wait_for(wait, std::chrono::milliseconds(20), [this] { return ending_; });
    }
    stop();
    {
      std::unique_lock wait(mu_);
      ended_.wait_for(wait, duration, [this] { return ending_; });
      if (ending_) return;
    }
    // Another process may hold the port for a moment.
    for (int i = 0; i < 50 && !start().ok(); ++i) {
      std::unique_lock wait(mu_);
      if (ended_.wait_for(wait, std::chrono::milliseconds(100), [this] { return ending_; })) return;
    }
    const std::lock_guard done(mu_);
    pausing_ = false;
  });
}

size_t SimWorker::Impl::step() {
  SLUICE_CHECK(options_.manual, "step() needs the manual mode");
  size_t tokens = 0;
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    tokens += rank->deliver(rank->engine.step());
  }
  return tokens;
}

void SimWorker::Impl::set_fault(SimFault fault) {
  const std::lock_guard lock(mu_);
  any_fault_.store(fault.kind != SimFault::Kind::kNone, std::memory_order_release);
  fault_ = std::move(fault);
}

void SimWorker::Impl::set_health(SimHealth health) {
  const std::lock_guard lock(mu_);
  health_ = health;
}

SimFault SimWorker::Impl::take_fault(bool generation) {
  if (!any_fault_.load(std::memory_order_acquire)) return {};
  const std::lock_guard lock(mu_);
  if (fault_.kind == SimFault::Kind::kNone || fault_.times == 0) return {};
  if (!generation && fault_.scope == SimFault::Scope::kGeneration) return {};
  const SimFault fault = fault_;
  if (fault_.times > 0) --fault_.times;
  ++tally_.faults;
  return fault;
}

void SimWorker::Impl::record(const ServerExchange& exchange, const std::string& body) {
  ++tally_.requests;
  if (options_.record_limit == 0) return;
  const auto& request = exchange.request();
  SimReceived received{request.method, request.target, request.headers, body};
  const std::lock_guard lock(mu_);
  received_.push_back(std::move(received));
  if (received_.size() > options_.record_limit) received_.pop_front();
}

Task<> SimWorker::Impl::handle(ServerExchange& exchange) {
  const std::string_view path = exchange.request().path();
  const bool posted = exchange.request().method == "POST" || exchange.request().method == "PUT";
  const bool is_public = path == "/health" || path == "/health_generate" || path.starts_with("/sim/");
  if (!options_.api_key.empty() && !is_public) {
    const auto given = exchange.request().headers.get("Authorization");
    if (!given || *given != "Bearer " + options_.api_key) {
      auto refused = Response::json(401, R"({"error":"Unauthorized"})");
      co_await exchange.respond(std::move(refused));
      co_return;
    }
  }
  if (posted && path == "/generate") co_return co_await generation(exchange, SimApi::kGenerate);
  if (posted && path == "/v1/completions") co_return co_await generation(exchange, SimApi::kCompletions);
  if (posted && path == "/v1/chat/completions") co_return co_await generation(exchange, SimApi::kChat);
  co_await handle_other(exchange, path);
}

Task<> SimWorker::Impl::handle_other(ServerExchange& exchange, std::string_view path) {
  auto body = co_await exchange.read_body(options_.max_body_bytes);
  if (!body.ok()) {
    auto refused = Response::json(400, openai_error(400, body.error().message));
    co_await exchange.respond(std::move(refused));
    co_return;
  }
  record(exchange, *body);
  if (path.starts_with("/sim/")) {
    auto answer = control(path, *body);
    auto response =
        answer.ok() ? std::move(answer).value() : Response::json(400, openai_error(400, answer.error().message));
    co_await exchange.respond(std::move(response));
    co_return;
  }
  const auto wait = std::make_shared<SimWait>(exchange.loop());
  exchange.on_client_gone([wait] { wait->leave(); });
  const SimFault fault = take_fault(/*generation=*/false);
  const bool goes_on = co_await suffer(exchange, fault, wait);
  if (!goes_on) co_return;
  Response response;
  if (path == "/health" || path == "/health_generate") {
    ++tally_.health_checks;
    SimHealth health;
    {
      const std::lock_guard lock(mu_);
      health = health_;
    }
    const bool stayed = co_await wait->sleep(health.delay);
    if (!stayed) co_return;
    response = Response::text(health.status, "");
  } else {
    response = answer(exchange.request(), *body);
  }
  co_await exchange.respond(std::move(response));
}

SimWorker::SimWorker(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
SimWorker::~SimWorker() = default;

Result<std::unique_ptr<SimWorker>> SimWorker::start(net::LoopGroup& loops, SimWorkerOptions options) {
  auto impl = std::make_shared<Impl>(loops, std::move(options));
  SLUICE_TRY_VOID(impl->start());
  return std::unique_ptr<SimWorker>(new SimWorker(std::move(impl)));
}

uint16_t SimWorker::port() const { return impl_->port_; }
std::string SimWorker::url() const {
  return net::Url{.host = impl_->options_.host, .port = port(), .path = ""}.to_string();
}
void SimWorker::stop() { impl_->stop(); }
Result<void> SimWorker::restart() { return impl_->start(); }
void SimWorker::rename() { impl_->rename(); }
bool SimWorker::running() const { return impl_->running(); }
void SimWorker::set_fault(SimFault fault) { impl_->set_fault(std::move(fault)); }
void SimWorker::set_health(SimHealth health) { impl_->set_health(health); }

SimCounters SimWorker::counters() const {
  const SimTally& tally = impl_->tally_;
  return {.requests = tally.requests,
          .generations = tally.generations,
          .completed = tally.completed,
          .client_gone = tally.client_gone,
          .aborted = tally.aborted,
          .faults = tally.faults,
          .health_checks = tally.health_checks,
          .load_reads = tally.load_reads,
          .flushes = tally.flushes};
}

std::vector<SimReceived> SimWorker::received() const {
  const std::lock_guard lock(impl_->mu_);
  return {impl_->received_.begin(), impl_->received_.end()};
}

void SimWorker::clear_received() {
  const std::lock_guard lock(impl_->mu_);
  impl_->received_.clear();
}

int64_t SimWorker::active() const { return impl_->tally_.active; }

SimLoad SimWorker::load(int64_t dp_rank) const {
  const auto rank = impl_->ranks().at(static_cast<size_t>(dp_rank));
  const std::lock_guard lock(rank->mu);
  return rank->load();
}

int64_t SimWorker::match(std::string_view text, int64_t dp_rank) const {
  const auto tokens = sim_tokens(text, impl_->tokens());
  const auto rank = impl_->ranks().at(static_cast<size_t>(dp_rank));
  const std::lock_guard lock(rank->mu);
  return rank->match(tokens);
}

size_t SimWorker::step() { return impl_->step(); }

}  // namespace sluice::testing
