#include "testing/sim_worker.h"

#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/check.h"
#include "net/server.h"
#include "net/sse.h"
#include "testing/sim_request.h"

namespace sluice::testing {
namespace {

using Json = nlohmann::ordered_json;
using net::Response;
using net::ResponseHead;
using net::ServerExchange;
using net::Task;
using Timer = net::asio::basic_waitable_timer<std::chrono::steady_clock,
                                              net::asio::wait_traits<std::chrono::steady_clock>, net::Executor>;
constexpr net::asio::use_awaitable_t<net::Executor> use_task{};

// The longest silence that a waiting handler sleeps through before it looks around again.
constexpr Duration kPatience = std::chrono::minutes(10);
constexpr std::string_view kDone = "[DONE]";

// One exchange that waits: for tokens, for a delay to pass, or for the client to leave. Its loop's thread only, but for
// `loop`.
class Active {
 public:
  struct Event {
    size_t sequence = 0;
    int64_t tokens = 0;
    int64_t cached_tokens = 0;
    bool aborted = false;
  };

  explicit Active(net::EventLoop& its_loop) : loop(its_loop), timer_(its_loop.executor()) {}

  void leave() {
    gone = true;
    timer_.cancel();
  }
  void push(Event event) {
    events.push_back(event);
    timer_.cancel();
  }

  // Until there is an event or the client left; false if it left.
  Task<bool> wait_event() {
    while (!gone && events.empty()) co_await doze(kPatience);
    co_return !gone;
  }
  // False if the client left meanwhile.
  Task<bool> sleep(Duration duration) {
    const auto end = std::chrono::steady_clock::now() + duration;
    for (;;) {
      const auto left = end - std::chrono::steady_clock::now();
      if (gone || left <= Duration::zero()) co_return !gone;
      co_await doze(left);
    }
  }
  Task<> wait_gone() {
    while (!gone) co_await doze(kPatience);
  }

  net::EventLoop& loop;
  bool gone = false;
  std::deque<Event> events;

 private:
  Task<> doze(Duration bound) {
    timer_.expires_after(bound);
    boost::system::error_code cancelled;
    auto token = net::asio::redirect_error(use_task, cancelled);
    co_await timer_.async_wait(token);
  }

  Timer timer_;
};

// One engine and the requests in it.
struct Rank {
  struct Target {
    std::shared_ptr<Active> active;
    size_t sequence = 0;
    std::string rid;
  };

  explicit Rank(const SimEngineOptions& options) : engine(options) {}

  std::mutex mu;
  // Guarded by mu.
  SimEngine engine;
  std::unordered_map<SimEngine::Id, Target> targets;
  bool driven = false;
  bool stopped = false;

  // mu held.
  size_t deliver(const std::vector<SimEngine::Emission>& emissions) {
    for (const auto& emission : emissions) {
      const auto it = targets.find(emission.id);
      if (it == targets.end()) continue;
      const Active::Event event{it->second.sequence, emission.tokens, emission.cached_tokens, false};
      it->second.active->loop.post([active = it->second.active, event] { active->push(event); });
      if (emission.finished) targets.erase(it);
    }
    return emissions.size();
  }
};

// Gives an engine real time while it has work. Steps follow each other on a schedule, so that late timers do not add
// up.
Task<> drive(net::EventLoop& loop, std::shared_ptr<Rank> rank, double time_scale) {
  Timer timer(loop.executor());
  auto due = std::chrono::steady_clock::now();
  for (;;) {
    std::optional<Duration> duration;
    {
      const std::lock_guard lock(rank->mu);
      if (!rank->stopped) duration = rank->engine.begin();
      if (!duration) {
        rank->driven = false;
        co_return;
      }
    }
    due += from_seconds(seconds(*duration) / time_scale);
    timer.expires_at(due);
    co_await timer.async_wait(use_task);
    {
      const std::lock_guard lock(rank->mu);
      rank->deliver(rank->engine.commit());
    }
    // Behind by much: the machine was busy or asleep, and catching up would burst.
    const auto now = std::chrono::steady_clock::now();
    if (now - due > std::chrono::milliseconds(50)) due = now;
  }
}

// The abort of a request that is not answered to its end.
class Submission {
 public:
  explicit Submission(std::shared_ptr<Rank> rank) : rank_(std::move(rank)) {}
  Submission(const Submission&) = delete;
  Submission& operator=(const Submission&) = delete;
  ~Submission() {
    const std::lock_guard lock(rank_->mu);
    for (const auto id : ids_) {
      if (rank_->targets.erase(id) > 0) rank_->engine.abort(id);
    }
  }
  void add(SimEngine::Id id) { ids_.push_back(id); }

 private:
  std::shared_ptr<Rank> rank_;
  std::vector<SimEngine::Id> ids_;
};

// A canned answer, ready to be sent.
struct Canned {
  std::string whole;
  std::vector<std::string> events;  // JSON, the usage event of OpenAI last
  std::string stream;               // all of them as frames with the end mark, without the usage event
  std::string stream_with_usage;
};

Canned make_canned(const SimWorkerOptions& options, SimApi api) {
  SimSequence sequence;
  sequence.prompt_tokens = options.canned_prompt_tokens;
  sequence.cached_tokens = options.canned_cached_tokens;
  sequence.output = sim_output({1, 2, 3}, 0, options.canned_chunks);
  SimSequence whole = sequence;
  whole.advance(options.canned_chunks);
  SimReplyHead head{.api = api, .id = "canned", .model = options.model, .created = 1};
  Canned canned;
  canned.whole = whole_reply(head, {whole}, 0);
  if (api == SimApi::kChat) canned.events.push_back(first_event(head, sequence));
  for (int64_t i = 1; i <= options.canned_chunks; ++i) {
    const std::string delta = sequence.advance(i);
    canned.events.push_back(token_event(head, sequence, delta, 0));
  }
  if (api == SimApi::kChat) canned.events.push_back(last_event(head, sequence));
  for (const auto& event : canned.events) net::append_sse(canned.stream, event);
  canned.stream_with_usage = canned.stream;
  if (api != SimApi::kGenerate) {
    canned.events.push_back(usage_event(head, {sequence}));
    net::append_sse(canned.stream_with_usage, canned.events.back());
  }
  net::append_sse(canned.stream, kDone);
  net::append_sse(canned.stream_with_usage, kDone);
  return canned;
}

ResponseHead event_stream() {
  return {.status = 200, .headers = {{"Content-Type", "text/event-stream"}, {"Cache-Control", "no-cache"}}};
}

std::string default_body(int status) {
  if (status == 503) return openai_error(503, "The request queue is full.", "503");
  if (status == 429) return openai_error(429, "Too many requests.", "rate_limit_error");
  return openai_error(status, "simulated failure", status >= 500 ? "InternalServerError" : "BadRequestError");
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

class SimWorker::Impl {
 public:
  Impl(net::LoopGroup& loops, SimWorkerOptions options) : loops_(loops), options_(std::move(options)) {
    for (const SimApi api : {SimApi::kGenerate, SimApi::kCompletions, SimApi::kChat}) {
      if (options_.canned) canned_.push_back(make_canned(options_, api));
    }
    port_ = options_.port;
  }
  ~Impl() {
    {
      const std::lock_guard lock(mu_);
      ending_ = true;
    }
    ended_.notify_all();
    if (pause_.joinable()) pause_.join();
    stop();
  }

  Result<void> start();
  void stop();
  bool running() const {
    const std::lock_guard lock(life_mu_);
    return server_ != nullptr;
  }
  size_t step();

  std::vector<std::shared_ptr<Rank>> ranks() const {
    const std::lock_guard lock(mu_);
    return ranks_;
  }

  net::LoopGroup& loops_;
  const SimWorkerOptions options_;
  std::atomic<uint16_t> port_{0};

  std::atomic<int64_t> requests_{0}, generations_{0}, completed_{0}, client_gone_{0}, aborted_{0}, faults_{0},
      health_checks_{0}, load_reads_{0}, flushes_{0}, active_{0};

  mutable std::mutex mu_;
  // Guarded by mu_.
  SimFault fault_;
  SimHealth health_;
  std::deque<SimReceived> received_;
  std::vector<std::shared_ptr<Rank>> ranks_;
  bool ending_ = false;
  std::condition_variable ended_;
  // So that the common case takes no lock.
  std::atomic<bool> any_fault_{false};

 private:
  Task<> handle(ServerExchange& exchange);
  Task<> generation(ServerExchange& exchange, SimApi api);
  Task<bool> canned(ServerExchange& exchange, SimApi api, const std::string& body, SimFault& fault,
                    std::shared_ptr<Active> active);
  Task<bool> simulated(ServerExchange& exchange, SimApi api, const std::string& body, SimFault& fault,
                       std::shared_ptr<Active> active);
  // One event of a stream, or what the fault makes of it; false: the stream is over.
  Task<bool> send_event(ServerExchange& exchange, Active& active, const SimFault& fault, int64_t& sent,
                        std::string_view event);
  // False if the fault was all there is to answer.
  Task<bool> suffer(ServerExchange& exchange, const SimFault& fault, std::shared_ptr<Active> active);

  SimFault take_fault(bool generation);
  void record(const ServerExchange& exchange, const std::string& body);
  Task<Response> answer(ServerExchange& exchange, const std::string& body);
  Result<Response> control(std::string_view path, const std::string& body);
  void pause_for(Duration duration);

  std::string load_document() const;
  std::string loads_document() const;
  std::string server_info() const;
  std::string metrics() const;
  size_t abort_requests(std::string_view rid, bool all);

  std::vector<Canned> canned_;  // by SimApi
  std::atomic<uint64_t> next_rid_{1};

  mutable std::mutex life_mu_;           // taken before mu_
  std::unique_ptr<net::Server> server_;  // guarded by life_mu_
  std::thread pause_;                    // guarded by mu_ until the end
  bool pausing_ = false;                 // guarded by mu_
};

Result<void> SimWorker::Impl::start() {
  const std::lock_guard life(life_mu_);
  if (server_) return Error{ErrorCode::kAlreadyExists, "the worker runs already"};
  std::vector<std::shared_ptr<Rank>> ranks;
  for (int64_t i = 0; i < options_.dp_size; ++i) ranks.push_back(std::make_shared<Rank>(options_.engine));
  {
    const std::lock_guard lock(mu_);
    ranks_ = std::move(ranks);
  }
  net::ServerOptions server_options;
  server_options.idle_timeout = options_.idle_timeout;
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

SimFault SimWorker::Impl::take_fault(bool generation) {
  if (!any_fault_.load(std::memory_order_acquire)) return {};
  const std::lock_guard lock(mu_);
  if (fault_.kind == SimFault::Kind::kNone || fault_.times == 0) return {};
  if (!generation && fault_.scope == SimFault::Scope::kGeneration) return {};
  const SimFault fault = fault_;
  if (fault_.times > 0) --fault_.times;
  faults_.fetch_add(1, std::memory_order_relaxed);
  return fault;
}

void SimWorker::Impl::record(const ServerExchange& exchange, const std::string& body) {
  requests_.fetch_add(1, std::memory_order_relaxed);
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
  const bool is_health = path == "/health" || path == "/health_generate";
  if (!options_.api_key.empty() && !is_health && !path.starts_with("/sim/")) {
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
  const auto active = std::make_shared<Active>(exchange.loop());
  exchange.on_client_gone([active] { active->leave(); });
  const SimFault fault = take_fault(/*generation=*/false);
  const bool goes_on = co_await suffer(exchange, fault, active);
  if (!goes_on) co_return;
  if (is_health) {
    health_checks_.fetch_add(1, std::memory_order_relaxed);
    SimHealth health;
    {
      const std::lock_guard lock(mu_);
      health = health_;
    }
    const bool stayed = co_await active->sleep(health.delay);
    if (!stayed) co_return;
    auto response = Response::text(health.status, "");
    co_await exchange.respond(std::move(response));
    co_return;
  }
  auto response = co_await answer(exchange, *body);
  co_await exchange.respond(std::move(response));
}

Task<bool> SimWorker::Impl::suffer(ServerExchange& exchange, const SimFault& fault, std::shared_ptr<Active> active) {
  switch (fault.kind) {
    case SimFault::Kind::kReset:
      exchange.abort();
      co_return false;
    case SimFault::Kind::kStall:
      co_await active->wait_gone();
      co_return false;
    case SimFault::Kind::kStatus: {
      auto response = Response::json(fault.status, fault.body.empty() ? default_body(fault.status) : fault.body);
      if (fault.retry_after) response.headers.add("Retry-After", std::to_string(*fault.retry_after));
      co_await exchange.respond(std::move(response));
      co_return false;
    }
    case SimFault::Kind::kSlowHead: {
      const bool stayed = co_await active->sleep(fault.delay);
      co_return stayed;
    }
    default:
      co_return true;
  }
}

Task<> SimWorker::Impl::generation(ServerExchange& exchange, SimApi api) {
  struct Count {
    explicit Count(std::atomic<int64_t>& n) : count(n) { count.fetch_add(1, std::memory_order_relaxed); }
    ~Count() { count.fetch_sub(1, std::memory_order_relaxed); }
    std::atomic<int64_t>& count;
  } const count(active_);
  auto body = co_await exchange.read_body(options_.max_body_bytes);
  if (!body.ok()) {
    const int status = body.error().code == ErrorCode::kTooLarge ? 413 : 400;
    auto refused = Response::json(status, openai_error(status, body.error().message));
    co_await exchange.respond(std::move(refused));
    co_return;
  }
  generations_.fetch_add(1, std::memory_order_relaxed);
  record(exchange, *body);
  const auto active = std::make_shared<Active>(exchange.loop());
  exchange.on_client_gone([active] { active->leave(); });

  SimFault fault = take_fault(/*generation=*/true);
  bool completed = co_await suffer(exchange, fault, active);
  if (completed) {
    if (options_.canned) {
      completed = co_await canned(exchange, api, *body, fault, active);
    } else {
      completed = co_await simulated(exchange, api, *body, fault, active);
    }
  }
  if (completed) completed_.fetch_add(1, std::memory_order_relaxed);
  if (!completed && active->gone) client_gone_.fetch_add(1, std::memory_order_relaxed);
}

Task<bool> SimWorker::Impl::send_event(ServerExchange& exchange, Active& active, const SimFault& fault, int64_t& sent,
                                       std::string_view event) {
  if (sent >= fault.chunks) {
    if (fault.kind == SimFault::Kind::kDie) {
      exchange.abort();
      co_return false;
    }
    if (fault.kind == SimFault::Kind::kHalfEvent) {
      co_await exchange.write("data: {\"text\":\"w1 \xe4\xbd");
      co_await active.wait_gone();
      co_return false;
    }
    if (fault.kind == SimFault::Kind::kMute) {
      co_await active.wait_gone();
      co_return false;
    }
  }
  ++sent;
  std::string frame;
  net::append_sse(frame, event);
  const auto written = co_await exchange.write(frame);
  co_return written.ok() && !active.gone;
}

Task<bool> SimWorker::Impl::canned(ServerExchange& exchange, SimApi api, const std::string& body, SimFault& fault,
                                   std::shared_ptr<Active> active) {
  const Canned& reply = canned_[static_cast<size_t>(api)];
  const StreamWish wish = stream_wish(body);
  if (options_.canned_delay > Duration::zero()) {
    const bool stayed = co_await active->sleep(options_.canned_delay);
    if (!stayed) co_return false;
  }
  const bool breaks = fault.kind == SimFault::Kind::kDie || fault.kind == SimFault::Kind::kHalfEvent ||
                      fault.kind == SimFault::Kind::kMute;
  if (!wish.stream) {
    if (breaks) {
      if (fault.kind == SimFault::Kind::kDie) {
        exchange.abort();
      } else {
        co_await active->wait_gone();
      }
      co_return false;
    }
    auto response = Response::json(200, reply.whole);
    const auto sent = co_await exchange.respond(std::move(response));
    co_return sent.ok();
  }
  auto head = event_stream();
  co_await exchange.start(std::move(head));
  if (!breaks && options_.canned_interval == Duration::zero()) {
    const auto written = co_await exchange.write(wish.include_usage ? reply.stream_with_usage : reply.stream);
    if (!written.ok()) co_return false;
  } else {
    int64_t sent = 0;
    const size_t without_usage = reply.events.size() - (api != SimApi::kGenerate && !wish.include_usage ? 1 : 0);
    for (size_t i = 0; i <= without_usage; ++i) {
      if (i > 0 && options_.canned_interval > Duration::zero()) {
        const bool stayed = co_await active->sleep(options_.canned_interval);
        if (!stayed) co_return false;
      }
      const std::string_view event = i < without_usage ? std::string_view(reply.events[i]) : kDone;
      const bool went = co_await send_event(exchange, *active, fault, sent, event);
      if (!went) co_return false;
    }
  }
  const auto finished = co_await exchange.finish();
  co_return finished.ok();
}

Task<bool> SimWorker::Impl::simulated(ServerExchange& exchange, SimApi api, const std::string& body, SimFault& fault,
                                      std::shared_ptr<Active> active) {
  const auto refusal = [api](const Error& error) {
    if (error.code == ErrorCode::kQueueFull) return Response::json(503, openai_error(503, error.message, "503"));
    return Response::json(400,
                          api == SimApi::kGenerate ? generate_error(error.message) : openai_error(400, error.message));
  };
  const auto began = std::chrono::steady_clock::now();
  auto request = parse_sim_request(api, body, options_.default_tokens);
  if (!request.ok()) {
    auto response = refusal(request.error());
    co_await exchange.respond(std::move(response));
    co_return false;
  }
  const auto all_ranks = ranks();
  size_t chosen = 0;
  if (request->dp_rank) {
    if (*request->dp_rank < 0 || *request->dp_rank >= options_.dp_size) {
      auto response = refusal({ErrorCode::kInvalidArgument, fmt::format("routed_dp_rank {} is not in [0, {})",
                                                                        *request->dp_rank, options_.dp_size)});
      co_await exchange.respond(std::move(response));
      co_return false;
    }
    chosen = static_cast<size_t>(*request->dp_rank);
  } else if (all_ranks.size() > 1) {
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < all_ranks.size(); ++i) {
      const std::lock_guard lock(all_ranks[i]->mu);
      if (all_ranks[i]->targets.size() < least) {
        least = all_ranks[i]->targets.size();
        chosen = i;
      }
    }
  }
  const std::shared_ptr<Rank> rank = all_ranks[chosen];

  SimReplyHead head{.api = api,
                    .id = request->rid.empty() ? fmt::format("sim-{}", next_rid_.fetch_add(1)) : request->rid,
                    .model = request->model.empty() ? options_.model : request->model,
                    .created = static_cast<int64_t>(std::time(nullptr)),
                    .dp_rank = options_.dp_size > 1 ? static_cast<int64_t>(chosen) : -1,
                    .batch = request->batch || request->n > 1};
  std::vector<SimSequence> sequences;
  Submission submission(rank);
  Result<void> submitted;
  bool start_driving = false;
  {
    const std::lock_guard lock(rank->mu);
    for (const auto& prompt : request->prompts) {
      for (int64_t sample = 0; sample < request->n && submitted.ok(); ++sample) {
        SimSequence sequence;
        sequence.index = static_cast<int64_t>(sequences.size());
        sequence.prompt_tokens = static_cast<int64_t>(prompt.size());
        sequence.output = sim_output(prompt, sample, request->max_tokens);
        std::vector<uint64_t> output;
        output.reserve(sequence.output.size());
        for (const int64_t id : sequence.output) output.push_back(sim_token(id));
        auto id = rank->engine.submit(prompt, std::move(output));
        if (!id.ok()) {
          submitted = id.error();
          break;
        }
        rank->targets[*id] = {active, sequences.size(), head.id};
        submission.add(*id);
        sequences.push_back(std::move(sequence));
      }
    }
    start_driving = submitted.ok() && !options_.manual && !std::exchange(rank->driven, true);
  }
  if (start_driving) {  // with the lock released: spawn() may run the coroutine's beginning at once
    net::EventLoop& loop = loops_[chosen % loops_.size()];
    loop.spawn([&loop, rank, scale = options_.time_scale] { return drive(loop, rank, scale); });
  }
  if (!submitted.ok()) {
    auto response = refusal(submitted.error());
    co_await exchange.respond(std::move(response));
    co_return false;
  }

  const auto elapsed = [began] { return seconds(std::chrono::steady_clock::now() - began); };
  int64_t sent = 0;
  size_t unfinished = sequences.size();
  while (unfinished > 0) {
    const bool stayed = co_await active->wait_event();
    if (!stayed) co_return false;
    const Active::Event event = active->events.front();
    active->events.pop_front();
    SimSequence& sequence = sequences[event.sequence];
    const bool is_first = sequence.generated == 0;
    std::string delta;
    if (event.aborted) {
      sequence.aborted = true;
    } else {
      delta = sequence.advance(event.tokens);
      sequence.cached_tokens = event.cached_tokens;
    }
    unfinished -= sequence.done();
    if (!request->stream) continue;
    if (!exchange.started()) {
      auto stream_head = event_stream();
      co_await exchange.start(std::move(stream_head));
    }
    if (api == SimApi::kChat && is_first) {
      const std::string json = first_event(head, sequence);
      const bool went = co_await send_event(exchange, *active, fault, sent, json);
      if (!went) co_return false;
    }
    if (!event.aborted || api != SimApi::kChat) {
      const std::string json = token_event(head, sequence, delta, elapsed());
      const bool went = co_await send_event(exchange, *active, fault, sent, json);
      if (!went) co_return false;
    }
    if (api == SimApi::kChat && sequence.done()) {
      const std::string json = last_event(head, sequence);
      const bool went = co_await send_event(exchange, *active, fault, sent, json);
      if (!went) co_return false;
    }
  }
  if (!request->stream) {
    if (fault.kind == SimFault::Kind::kDie) {
      exchange.abort();
      co_return false;
    }
    if (fault.kind == SimFault::Kind::kHalfEvent || fault.kind == SimFault::Kind::kMute) {
      co_await active->wait_gone();
      co_return false;
    }
    auto response = Response::json(200, whole_reply(head, sequences, elapsed()));
    const auto answered = co_await exchange.respond(std::move(response));
    co_return answered.ok();
  }
  if (api != SimApi::kGenerate && request->include_usage) {
    const std::string json = usage_event(head, sequences);
    const bool went = co_await send_event(exchange, *active, fault, sent, json);
    if (!went) co_return false;
  }
  const bool went = co_await send_event(exchange, *active, fault, sent, kDone);
  if (!went) co_return false;
  const auto finished = co_await exchange.finish();
  co_return finished.ok();
}

Task<Response> SimWorker::Impl::answer(ServerExchange& exchange, const std::string& body) {
  const std::string_view path = exchange.request().path();
  const bool is_get = exchange.request().method == "GET";
  if (is_get && path == "/ping") co_return Response::text(200, "");
  if (is_get && (path == "/v1/models" || path == "/v1/models/" + options_.model)) {
    const Json entry = {{"id", options_.model},
                        {"object", "model"},
                        {"created", 1},
                        {"owned_by", "sglang"},
                        {"root", options_.model},
                        {"parent", nullptr},
                        {"max_model_len", options_.engine.context_length}};
    if (path != "/v1/models") co_return Response::json(200, entry.dump());
    const Json list = {{"object", "list"}, {"data", Json::array({entry})}};
    co_return Response::json(200, list.dump());
  }
  if (is_get && (path == "/server_info" || path == "/get_server_info")) co_return Response::json(200, server_info());
  if (is_get && (path == "/model_info" || path == "/get_model_info")) {
    const Json info = {{"model_path", options_.model},
                       {"tokenizer_path", options_.model},
                       {"is_generation", true},
                       {"preferred_sampling_params", nullptr},
                       {"weight_version", "default"},
                       {"has_image_understanding", false},
                       {"has_audio_understanding", false},
                       {"model_type", "sim"},
                       {"architectures", Json::array({"SimForCausalLM"})}};
    co_return Response::json(200, info.dump());
  }
  if (is_get && path == "/get_load") {
    load_reads_.fetch_add(1, std::memory_order_relaxed);
    co_return Response::json(200, load_document());
  }
  if (is_get && path == "/v1/loads") {
    load_reads_.fetch_add(1, std::memory_order_relaxed);
    co_return Response::json(200, loads_document());
  }
  if (is_get && path == "/metrics") co_return Response::text(200, metrics());
  if (path == "/flush_cache") {
    bool flushed = true;
    for (const auto& rank : ranks()) {
      const std::lock_guard lock(rank->mu);
      flushed = flushed && !rank->engine.has_work();
    }
    for (const auto& rank : ranks()) {
      const std::lock_guard lock(rank->mu);
      if (flushed) flushed = rank->engine.flush();
    }
    if (options_.canned) flushed = active_.load(std::memory_order_relaxed) == 0;
    if (!flushed) co_return Response::text(400, "Flush cache failed: requests are running or waiting.\n");
    flushes_.fetch_add(1, std::memory_order_relaxed);
    co_return Response::text(200, "Cache flushed.\n");
  }
  if (!is_get && path == "/abort_request") {
    const auto json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) co_return Response::json(400, openai_error(400, "the body must be a JSON object"));
    const auto rid = json.find("rid");
    const auto all = json.find("abort_all");
    const bool abort_all = all != json.end() && all->is_boolean() && all->get<bool>();
    abort_requests(rid != json.end() && rid->is_string() ? rid->get<std::string>() : std::string(), abort_all);
    co_return Response::text(200, "");
  }
  if (path == "/start_profile" || path == "/stop_profile")
    co_return Response::text(200, "There is no profiler here.\n");
  co_return Response::json(404, openai_error(404, fmt::format("no such path: {}", path), "NotFoundError"));
}

size_t SimWorker::Impl::abort_requests(std::string_view rid, bool all) {
  size_t count = 0;
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    for (auto it = rank->targets.begin(); it != rank->targets.end();) {
      if (!all && (rid.empty() || it->second.rid != rid)) {
        ++it;
        continue;
      }
      rank->engine.abort(it->first);
      it->second.active->loop.post([active = it->second.active, sequence = it->second.sequence] {
        active->push({.sequence = sequence, .aborted = true});
      });
      it = rank->targets.erase(it);
      ++count;
    }
  }
  aborted_.fetch_add(static_cast<int64_t>(count), std::memory_order_relaxed);
  return count;
}

std::string SimWorker::Impl::load_document() const {
  Json list = Json::array();
  int64_t rank_number = 0;
  const double now = seconds(real_clock().now().time_since_epoch());
  for (const auto& rank : ranks()) {
    SimLoad load;
    {
      const std::lock_guard lock(rank->mu);
      load = rank->engine.load();
    }
    if (options_.canned) load.running = active_.load(std::memory_order_relaxed);
    list.push_back({{"rid", nullptr},
                    {"http_worker_ipc", nullptr},
                    {"dp_rank", options_.dp_size > 1 ? Json(rank_number) : Json(nullptr)},
                    {"num_reqs", load.running + load.waiting},
                    {"num_waiting_reqs", load.waiting},
                    {"num_tokens", load.used_tokens + load.waiting_tokens},
                    {"ts_tic", now}});
    ++rank_number;
  }
  return list.dump();
}

std::string SimWorker::Impl::loads_document() const {
  Json loads = Json::array();
  int64_t rank_number = 0;
  int64_t running = 0;
  int64_t waiting = 0;
  double usage = 0;
  double throughput = 0;
  double utilization = 0;
  const auto all = ranks();
  for (const auto& rank : all) {
    SimLoad load;
    {
      const std::lock_guard lock(rank->mu);
      load = rank->engine.load();
    }
    if (options_.canned) load.running = active_.load(std::memory_order_relaxed);
    const double rank_utilization =
        static_cast<double>(load.running) / static_cast<double>(options_.engine.max_running);
    loads.push_back({{"dp_rank", rank_number++},
                     {"num_running_reqs", load.running},
                     {"num_waiting_reqs", load.waiting},
                     {"num_waiting_uncached_tokens", load.waiting_tokens},
                     {"num_total_reqs", load.running + load.waiting},
                     {"num_used_tokens", load.used_tokens},
                     {"max_total_num_tokens", load.max_tokens},
                     {"token_usage", load.token_usage},
                     {"gen_throughput", load.generated_per_s},
                     {"cache_hit_rate", load.last_hit_rate},
                     {"utilization", rank_utilization},
                     {"max_running_requests", options_.engine.max_running}});
    running += load.running;
    waiting += load.waiting;
    usage += load.token_usage;
    throughput += load.generated_per_s;
    utilization += rank_utilization;
  }
  const auto n = static_cast<double>(all.size());
  const Json document = {{"timestamp", utc_now()},
                         {"version", "sim"},
                         {"dp_rank_count", all.size()},
                         {"loads", loads},
                         {"aggregate",
                          {{"total_running_reqs", running},
                           {"total_waiting_reqs", waiting},
                           {"total_reqs", running + waiting},
                           {"avg_token_usage", usage / n},
                           {"avg_throughput", throughput / n},
                           {"avg_utilization", utilization / n}}}};
  return document.dump();
}

std::string SimWorker::Impl::server_info() const {
  Json states = Json::array();
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    const SimLoad load = rank->engine.load();
    states.push_back({{"last_gen_throughput", load.generated_per_s},
                      {"memory_usage", {{"token_capacity", load.max_tokens}}},
                      {"effective_max_running_requests_per_dp", options_.engine.max_running}});
  }
  const int64_t max_tokens = options_.engine.kv_tokens / options_.engine.block_size * options_.engine.block_size;
  const Json info = {{"model_path", options_.model},
                     {"served_model_name", options_.model},
                     {"tokenizer_path", options_.model},
                     {"host", options_.host},
                     {"port", port_.load()},
                     {"tp_size", 1},
                     {"dp_size", options_.dp_size},
                     {"page_size", options_.engine.block_size},
                     {"disaggregation_mode", "null"},
                     {"max_running_requests", options_.engine.max_running},
                     {"context_length", options_.engine.context_length},
                     {"max_total_num_tokens", max_tokens},
                     {"max_req_input_len", options_.engine.context_length - 1},
                     {"status", "ready"},
                     {"version", "sim"},
                     {"internal_states", states}};
  return info.dump();
}

std::string SimWorker::Impl::metrics() const {
  struct Row {
    std::string_view name, type, help;
    double (*value)(const SimLoad&);
  };
  static constexpr Row kRows[] = {
      {"num_running_reqs", "gauge", "Requests running.",
       [](const SimLoad& l) { return static_cast<double>(l.running); }},
      {"num_queue_reqs", "gauge", "Requests waiting.", [](const SimLoad& l) { return static_cast<double>(l.waiting); }},
      {"num_used_tokens", "gauge", "KV tokens in use.",
       [](const SimLoad& l) { return static_cast<double>(l.used_tokens); }},
      {"max_total_num_tokens", "gauge", "KV tokens in all.",
       [](const SimLoad& l) { return static_cast<double>(l.max_tokens); }},
      {"token_usage", "gauge", "Share of the KV pool in use.", [](const SimLoad& l) { return l.token_usage; }},
      {"gen_throughput", "gauge", "Tokens generated per second.", [](const SimLoad& l) { return l.generated_per_s; }},
      {"cache_hit_rate", "gauge", "Share of the last prompt that was cached.",
       [](const SimLoad& l) { return l.last_hit_rate; }},
      {"prompt_tokens_total", "counter", "Prompt tokens admitted.",
       [](const SimLoad& l) { return static_cast<double>(l.total_prompt_tokens); }},
      {"generation_tokens_total", "counter", "Tokens generated.",
       [](const SimLoad& l) { return static_cast<double>(l.total_generated_tokens); }},
      {"cached_tokens_total", "counter", "Prompt tokens that were cached.",
       [](const SimLoad& l) { return static_cast<double>(l.total_cached_tokens); }},
      {"num_requests_total", "counter", "Requests submitted.",
       [](const SimLoad& l) { return static_cast<double>(l.total_requests); }},
      {"num_aborted_requests_total", "counter", "Requests aborted.",
       [](const SimLoad& l) { return static_cast<double>(l.total_aborted); }},
  };
  std::vector<SimLoad> loads;
  for (const auto& rank : ranks()) {
    const std::lock_guard lock(rank->mu);
    loads.push_back(rank->engine.load());
    if (options_.canned) {
      loads.back().running = active_.load(std::memory_order_relaxed);
      loads.back().total_requests = generations_.load(std::memory_order_relaxed);
    }
  }
  std::string out;
  for (const auto& row : kRows) {
    out += fmt::format("# HELP sglang:{} {}\n# TYPE sglang:{} {}\n", row.name, row.help, row.name, row.type);
    for (size_t i = 0; i < loads.size(); ++i) {
      const std::string rank = loads.size() > 1 ? fmt::format(",dp_rank=\"{}\"", i) : "";
      out += fmt::format("sglang:{}{{model_name={}{}}} {}\n", row.name, json_quoted(options_.model), rank,
                         row.value(loads[i]));
    }
  }
  return out;
}

// POST /sim/fault  {"kind":"status","status":503,"retry_after":1,"times":3,...}: the fields of SimFault.
// POST /sim/health {"status":503,"delay_ms":100}
// POST /sim/down   {"ms":2000}: refuses connections for that long, then comes back with empty caches.
// GET  /sim/counters
Result<Response> SimWorker::Impl::control(std::string_view path, const std::string& body) {
  if (path == "/sim/counters") {
    const Json json = {{"requests", requests_.load()},
                       {"generations", generations_.load()},
                       {"completed", completed_.load()},
                       {"client_gone", client_gone_.load()},
                       {"aborted", aborted_.load()},
                       {"faults", faults_.load()},
                       {"health_checks", health_checks_.load()},
                       {"load_reads", load_reads_.load()},
                       {"flushes", flushes_.load()},
                       {"active", active_.load()}};
    return Response::json(200, json.dump());
  }
  const auto json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Error{ErrorCode::kInvalidArgument, "the body must be a JSON object"};
  const auto integer = [&](const char* key, int64_t fallback) {
    const auto it = json.find(key);
    return it != json.end() && it->is_number_integer() ? it->get<int64_t>() : fallback;
  };
  const auto text = [&](const char* key) {
    const auto it = json.find(key);
    return it != json.end() && it->is_string() ? it->get<std::string>() : std::string();
  };
  if (path == "/sim/down") {
    pause_for(std::chrono::milliseconds(integer("ms", 1000)));
    return Response::json(200, "{}");
  }
  if (path == "/sim/health") {
    const std::lock_guard lock(mu_);
    health_ = {static_cast<int>(integer("status", 200)), std::chrono::milliseconds(integer("delay_ms", 0))};
    return Response::json(200, "{}");
  }
  if (path != "/sim/fault") return Error{ErrorCode::kNotFound, "the paths are /sim/fault, health, down and counters"};
  static const std::map<std::string, SimFault::Kind> kKinds = {{"none", SimFault::Kind::kNone},
                                                               {"reset", SimFault::Kind::kReset},
                                                               {"stall", SimFault::Kind::kStall},
                                                               {"status", SimFault::Kind::kStatus},
                                                               {"slow_head", SimFault::Kind::kSlowHead},
                                                               {"die", SimFault::Kind::kDie},
                                                               {"half_event", SimFault::Kind::kHalfEvent},
                                                               {"mute", SimFault::Kind::kMute}};
  const auto kind = kKinds.find(text("kind"));
  if (kind == kKinds.end()) {
    return Error{ErrorCode::kInvalidArgument,
                 "kind must be none, reset, stall, status, slow_head, die, half_event or mute"};
  }
  SimFault fault{.kind = kind->second,
                 .status = static_cast<int>(integer("status", 503)),
                 .body = text("body"),
                 .chunks = integer("chunks", 0),
                 .delay = std::chrono::milliseconds(integer("delay_ms", 0)),
                 .times = integer("times", -1)};
  if (fault.status < 200 || fault.status > 599)
    return Error{ErrorCode::kInvalidArgument, "status must be in [200, 599]"};
  if (text("scope") == "everything") fault.scope = SimFault::Scope::kEverything;
  if (json.contains("retry_after")) fault.retry_after = integer("retry_after", 1);
  const std::lock_guard lock(mu_);
  fault_ = fault;
  any_fault_.store(fault.kind != SimFault::Kind::kNone, std::memory_order_release);
  return Response::json(200, "{}");
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
bool SimWorker::running() const { return impl_->running(); }

void SimWorker::set_fault(SimFault fault) {
  const std::lock_guard lock(impl_->mu_);
  impl_->any_fault_.store(fault.kind != SimFault::Kind::kNone, std::memory_order_release);
  impl_->fault_ = std::move(fault);
}

void SimWorker::set_health(SimHealth health) {
  const std::lock_guard lock(impl_->mu_);
  impl_->health_ = health;
}

SimCounters SimWorker::counters() const {
  return {.requests = impl_->requests_,
          .generations = impl_->generations_,
          .completed = impl_->completed_,
          .client_gone = impl_->client_gone_,
          .aborted = impl_->aborted_,
          .faults = impl_->faults_,
          .health_checks = impl_->health_checks_,
          .load_reads = impl_->load_reads_,
          .flushes = impl_->flushes_};
}

std::vector<SimReceived> SimWorker::received() const {
  const std::lock_guard lock(impl_->mu_);
  return {impl_->received_.begin(), impl_->received_.end()};
}

void SimWorker::clear_received() {
  const std::lock_guard lock(impl_->mu_);
  impl_->received_.clear();
}

int64_t SimWorker::active() const { return impl_->active_; }

SimLoad SimWorker::load(int64_t dp_rank) const {
  const auto rank = impl_->ranks().at(static_cast<size_t>(dp_rank));
  const std::lock_guard lock(rank->mu);
  return rank->engine.load();
}

int64_t SimWorker::match(std::string_view text, int64_t dp_rank) const {
  const auto tokens = sim_tokens(text);
  const auto rank = impl_->ranks().at(static_cast<size_t>(dp_rank));
  const std::lock_guard lock(rank->mu);
  return rank->engine.match(tokens);
}

size_t SimWorker::step() { return impl_->step(); }

}  // namespace sluice::testing
