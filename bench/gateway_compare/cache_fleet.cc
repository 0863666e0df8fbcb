#include "cache_fleet.h"

#include <simdjson.h>
#include <xxhash.h>

#include <algorithm>
#include <unordered_map>

#include "base/rng.h"
#include "gateway/policy/least.h"
#include "net/server.h"
#include "net/sse.h"
#include "testing/sim_rank.h"

namespace sluice::compare {
namespace {

using net::Response;
using net::ServerExchange;
using net::Task;
using testing::SimWait;
using testing::WorkerJob;

constexpr std::string_view kJobHeader = "X-Sim-Job";
constexpr int64_t kOutputTokens = gateway::kSimulatedTokens;
constexpr size_t kBodyLimit = size_t{16} << 20;
constexpr int64_t kFirstToken = 1;

struct Prompt {
  std::string text;
  bool stream = false;
};

// The content of the last message; an empty text if the body is not a chat.
Prompt prompt_of(const std::string& body) {
  static thread_local simdjson::dom::parser parser;
  Prompt prompt;
  simdjson::dom::element chat;
  if (parser.parse(body).get(chat) != simdjson::SUCCESS) return prompt;
  bool stream = false;
  prompt.stream = chat["stream"].get(stream) == simdjson::SUCCESS && stream;
  simdjson::dom::array messages;
  if (chat["messages"].get(messages) != simdjson::SUCCESS) return prompt;
  for (const auto message : messages) {
    std::string_view text;
    if (message["content"].get(text) == simdjson::SUCCESS) prompt.text = text;
  }
  return prompt;
}

// A token for each four characters, as the simulation counts them.
std::string rendered(std::string_view text) {
  std::string json = R"({"request_id":"sim","token_ids":[)";
  for (size_t at = 0; at + 4 <= text.size(); at += 4) {
    fmt::format_to(std::back_inserter(json), "{}{}", at == 0 ? "" : ",", XXH3_64bits(text.data() + at, 4) & 0xffff);
  }
  return json + "]}";
}

std::string usage_of(int64_t prompt_tokens, int64_t cached_tokens) {
  return fmt::format(
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      prompt_tokens, kOutputTokens, prompt_tokens + kOutputTokens, cached_tokens);
}

std::string whole_answer(int64_t prompt_tokens, int64_t cached_tokens) {
  return fmt::format(
      R"({{"id":"sim","object":"chat.completion","created":1,"model":"sim-model","choices":[{{"index":0,"message":)"
      R"({{"role":"assistant","content":"as it was said before"}},"finish_reason":"stop"}}],"usage":{}}})",
      usage_of(prompt_tokens, cached_tokens));
}

std::string stream_event(std::string_view choices, std::string_view usage) {
  return fmt::format(
      R"({{"id":"sim","object":"chat.completion.chunk","created":1,"model":"sim-model","choices":[{}],"usage":{}}})",
      choices, usage);
}

}  // namespace

// The clock and the counts that all nodes share; `mu` guards the nodes' workers too, for the oracle's sake.
struct CacheFleet::Shared {
  mutable std::mutex mu;
  const TimePoint began = std::chrono::steady_clock::now();
  uint64_t last_id = 0;  // guarded by mu
  FleetCounts counts;    // guarded by mu
  Rng rng{7};            // guarded by mu

  Duration now() const { return std::chrono::steady_clock::now() - began; }
};

class CacheFleet::Node {
 public:
  Node(net::LoopGroup& loops, Shared& shared, size_t index, const FleetRules& rules)
      : loop_(loops[0]),
        shared_(shared),
        index_(index),
        rules_(rules.simulation.worker),
        decode_(rules.simulation.decode),
        renders_(rules.renders),
        worker_(rules.simulation.worker),
        timer_(loop_.executor()),
        server_(loops, {.idle_timeout = std::chrono::minutes(10)},
                [this](ServerExchange& exchange) { return handle(exchange); }) {}

  Result<uint16_t> listen() {
    SLUICE_TRY(port_, server_.listen("127.0.0.1", 0));
    return port_;
  }
  uint16_t port() const { return port_; }
  void stop() {
    server_.stop_accepting();
    server_.drain(Duration::zero());
  }

  WorkerJob job_of(const std::string& text) const { return testing::job_of(text, rules_, decode_); }
  // mu held.
  Duration true_cost(const WorkerJob& job) const { return worker_.true_cost(job, shared_.now()); }
  // mu held. The job's number.
  uint64_t submit(WorkerJob job) {
    const Duration now = shared_.now();
    deliver(worker_.advance(now));
    job.id = ++shared_.last_id;
    open_[job.id] = {.prompt_tokens = job.prompt_tokens, .wait = nullptr};
    worker_.submit(std::move(job), now);
    return shared_.last_id;
  }
  // The timer to the next thing that happens. Any thread.
  void arm() {
    loop_.post([this] { arm_here(); });
  }

 private:
  struct Open {
    int64_t prompt_tokens = 0;
    std::shared_ptr<SimWait> wait;  // null until its request is here
  };

  Task<> handle(ServerExchange& exchange);
  Task<> generate(ServerExchange& exchange, const std::string& body);
  std::string document(std::string_view path) const;

  void arm_here() {
    Duration next;
    {
      const std::lock_guard lock(shared_.mu);
      deliver(worker_.advance(shared_.now()));
      next = worker_.next_event();
    }
    if (next == Duration::max()) return;
    timer_.expires_at(shared_.began + next);
    timer_.async_wait([this](boost::system::error_code error) {
      if (!error) arm_here();
    });
  }

  // mu held.
  void deliver(testing::CacheWorker::Events events) {
    for (const WorkerJob& job : events.first_tokens) push(job, {.tokens = kFirstToken});
    for (const WorkerJob& job : events.finished) {
      push(job, {.tokens = kOutputTokens, .cached_tokens = job.cached_tokens});
      open_.erase(job.id);
      FleetCounts& counts = shared_.counts;
      ++counts.requests;
      counts.prompt_tokens += job.prompt_tokens;
      counts.cached_tokens += job.cached_tokens;
      ++counts.by_worker[index_];
    }
  }
  void push(const WorkerJob& job, SimWait::Event event) {
    const auto at = open_.find(job.id);
    if (at == open_.end() || at->second.wait == nullptr) return;
    loop_.post([wait = at->second.wait, event] { wait->push(event); });
  }

  net::EventLoop& loop_;
  Shared& shared_;
  const size_t index_;
  const testing::CacheWorkerRules rules_;
  const Duration decode_;
  const bool renders_;
  testing::CacheWorker worker_;              // guarded by mu
  std::unordered_map<uint64_t, Open> open_;  // guarded by mu
  net::Timer timer_;                         // loop thread
  net::Server server_;
  uint16_t port_ = 0;
};

Task<> CacheFleet::Node::handle(ServerExchange& exchange) {
  const std::string path(exchange.request().path());
  auto body = co_await exchange.read_body(kBodyLimit);
  if (!body.ok()) {
    exchange.abort();
    co_return;
  }
  if (path == "/v1/chat/completions") co_return co_await generate(exchange, *body);
  auto response = Response::text(200, "");
  if (renders_ && path == "/v1/chat/completions/render") {
    response = Response::json(200, rendered(prompt_of(*body).text));
  } else if (path != "/health" && path != "/health_generate") {
    std::string json = document(path);
    response =
        Response::json(json.empty() ? 404 : 200, json.empty() ? R"({"error":{"message":"no such path"}})" : json);
  }
  co_await exchange.respond(std::move(response));
}

Task<> CacheFleet::Node::generate(ServerExchange& exchange, const std::string& body) {
  const Prompt prompt = prompt_of(body);
  const auto wait = std::make_shared<SimWait>(exchange.loop());
  exchange.on_client_gone([wait] { wait->leave(); });
  const auto named = exchange.request().headers.get(kJobHeader);
  WorkerJob job = job_of(prompt.text);
  const int64_t prompt_tokens = job.prompt_tokens;
  {
    const std::lock_guard lock(shared_.mu);
    const uint64_t id = named ? std::strtoull(std::string(*named).c_str(), nullptr, 10) : submit(std::move(job));
    open_[id].wait = wait;
  }
  if (!named) arm_here();
  int64_t cached_tokens = 0;
  for (int64_t tokens = 0; tokens < kOutputTokens;) {
    const bool stayed = co_await wait->wait_event();
    if (!stayed) co_return;
    const SimWait::Event event = wait->events.front();
    wait->events.pop_front();
    tokens = event.tokens;
    cached_tokens = event.cached_tokens;
    if (!prompt.stream || tokens != kFirstToken) continue;
    net::ResponseHead head{.status = 200, .headers = {{"Content-Type", "text/event-stream"}}};
    co_await exchange.start(std::move(head));
    std::string frame;
    net::append_sse(frame, stream_event(R"({"index":0,"delta":{"role":"assistant","content":"as"}})", "null"));
    co_await exchange.write(frame);
  }
  if (!prompt.stream) {
    auto response = Response::json(200, whole_answer(prompt_tokens, cached_tokens));
    co_await exchange.respond(std::move(response));
    co_return;
  }
  std::string frames;
  net::append_sse(frames, stream_event(R"({"index":0,"delta":{"content":" it was"},"finish_reason":"stop"})", "null"));
  net::append_sse(frames, stream_event("", usage_of(prompt_tokens, cached_tokens)));
  net::append_sse(frames, "[DONE]");
  co_await exchange.write(frames);
  co_await exchange.finish();
}

// What gateways ask an SGLang worker for; empty if it has no such path.
std::string CacheFleet::Node::document(std::string_view path) const {
  const int64_t capacity = rules_.kv_blocks * rules_.block_tokens;
  if (path == "/v1/models") {
    return R"({"object":"list","data":[{"id":"sim-model","object":"model","created":1,"owned_by":"sglang","root":"sim-model"}]})";
  }
  if (path == "/model_info" || path == "/get_model_info") {
    return R"({"model_path":"sim-model","tokenizer_path":"sim-model","is_generation":true})";
  }
  if (path == "/server_info" || path == "/get_server_info") {
    return fmt::format(
        R"({{"model_path":"sim-model","served_model_name":"sim-model","tokenizer_path":"sim-model","tp_size":1,"dp_size":1,)"
        R"("page_size":{},"max_total_num_tokens":{},"max_running_requests":{},"version":"sim","internal_states":[]}})",
        rules_.block_tokens, capacity, rules_.decode_slots);
  }
  if (path != "/v1/loads" && path != "/get_load") return {};
  const std::lock_guard lock(shared_.mu);
  const int64_t waiting = worker_.waiting_tokens(), used = worker_.used_tokens(), open = worker_.open();
  if (path == "/get_load") {
    return fmt::format(R"([{{"dp_rank":0,"num_reqs":{},"num_waiting_reqs":0,"num_tokens":{}}}])", open, used + waiting);
  }
  return fmt::format(
      R"({{"version":"sim","dp_rank_count":1,"loads":[{{"dp_rank":0,"num_running_reqs":{0},"num_waiting_reqs":0,)"
      R"("num_waiting_uncached_tokens":{1},"num_total_reqs":{0},"num_used_tokens":{2},"max_total_num_tokens":{3},)"
      R"("token_usage":{4:.4f},"gen_throughput":0.0,"cache_hit_rate":0.0,"utilization":{5:.4f},"max_running_requests":{6}}}]}})",
      open, waiting, used, capacity, worker_.kv_usage(),
      static_cast<double>(open) / static_cast<double>(rules_.decode_slots), rules_.decode_slots);
}

CacheFleet::CacheFleet() : shared_(std::make_unique<Shared>()) {}

Result<std::unique_ptr<CacheFleet>> CacheFleet::start(const FleetRules& rules) {
  std::unique_ptr<CacheFleet> fleet(new CacheFleet());
  const auto workers = static_cast<size_t>(rules.simulation.workers);
  fleet->shared_->counts.by_worker.resize(workers);
  fleet->loops_ = std::make_unique<net::LoopGroup>(1, "workers");
  for (size_t i = 0; i < workers; ++i) {
    fleet->nodes_.push_back(std::make_unique<Node>(*fleet->loops_, *fleet->shared_, i, rules));
    SLUICE_TRY_VOID(fleet->nodes_.back()->listen());
  }
  return fleet;
}

CacheFleet::~CacheFleet() {
  for (const auto& node : nodes_) node->stop();
  loops_->stop();
}

std::vector<uint16_t> CacheFleet::ports() const {
  std::vector<uint16_t> ports;
  for (const auto& node : nodes_) ports.push_back(node->port());
  return ports;
}

FleetCounts CacheFleet::counts() const {
  const std::lock_guard lock(shared_->mu);
  return shared_->counts;
}

void CacheFleet::reset_counts() {
  const std::lock_guard lock(shared_->mu);
  shared_->counts = {};
  shared_->counts.by_worker.resize(nodes_.size());
}

Routed CacheFleet::choose_best(const std::string& text) {
  uint32_t best = 0;
  uint64_t id = 0;
  {
    const std::lock_guard lock(shared_->mu);
    WorkerJob job = nodes_[0]->job_of(text);
    gateway::Least<int64_t> least(shared_->rng);
    for (uint32_t i = 0; i < nodes_.size(); ++i) least.offer(i, nodes_[i]->true_cost(job).count());
    best = least.worker();
    id = nodes_[best]->submit(std::move(job));
  }
  nodes_[best]->arm();
  return {.port_index = best, .headers = fmt::format("{}: {}\r\n", kJobHeader, id)};
}

}  // namespace sluice::compare
