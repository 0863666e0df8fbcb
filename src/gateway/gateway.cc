#include "gateway/gateway.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <future>
#include <map>
#include <thread>

#include "base/process.h"
#include "gateway/access_log.h"
#include "gateway/context.h"
#include "gateway/control.h"
#include "gateway/health_port.h"
#include "gateway/kv_events/kv_caches.h"
#include "gateway/loop_state.h"
#include "gateway/policy/routing_keys.h"
#include "gateway/router.h"
#include "gateway/succession.h"
#include "net/server.h"
#include "obs/exposition.h"
#include "obs/trace_exporter.h"

namespace sluice::gateway {
namespace {

// Gauges whose labels name a worker: a rendering clears them and sets them anew, or a worker that is removed while it
// runs would leave series behind that nobody takes away.
struct WorkerGauge {
  const char* family;
  double (*value)(const Worker&);
};
constexpr WorkerGauge kOfWorkers[] = {
    {"smg_worker_requests_active", [](const Worker& w) { return static_cast<double>(w.load->requests.load()); }},
    {"smg_worker_health", [](const Worker& w) { return w.healthy ? 1.0 : 0.0; }},
    {"smg_worker_suspect", [](const Worker& w) { return w.suspect ? 1.0 : 0.0; }},
    {"smg_worker_cb_state", [](const Worker& w) { return static_cast<double>(w.breaker.state()); }},
    {"smg_worker_cb_consecutive_failures",
     [](const Worker& w) { return static_cast<double>(w.breaker.streak().faults); }},
    {"smg_worker_cb_consecutive_successes",
     [](const Worker& w) { return static_cast<double>(w.breaker.streak().successes); }},
    {"smg_worker_cache_reported", [](const Worker& w) { return w.load->belief.confirmed() ? 1.0 : 0.0; }},
    {"smg_worker_cache_belief", [](const Worker& w) { return w.load->belief.share(); }},
};
struct EngineGauge {
  const char* family;
  std::optional<double> RankLoad::*value;
};
constexpr EngineGauge kOfEngines[] = {
    {"smg_engine_running_requests", &RankLoad::running}, {"smg_engine_waiting_requests", &RankLoad::waiting},
    {"smg_engine_token_usage", &RankLoad::token_usage},  {"smg_engine_gen_throughput", &RankLoad::throughput},
    {"smg_engine_cache_hit_rate", &RankLoad::hit_rate},
};
constexpr const char* kPoolSize = "smg_worker_pool_size";
constexpr const char* kDiscovered = "smg_discovery_workers_discovered";
constexpr const char* kKeysOfWorker = "smg_worker_routing_keys_active";
constexpr const char* kConnections = "smg_upstream_connections";
constexpr const char* kHitRate = "sglang_cache_hit_rate";

}  // namespace

// Members are destroyed from the last to the first: the server before what its handlers use.
class Gateway::Impl {
 public:
  Impl(const GatewayOptions& options, Gatekeeper gatekeeper, std::vector<double> buckets, const Clock& clock,
       Certificates certificates)
      : loops(static_cast<int>(options.runtime_worker_threads), "gateway"),
        context(options, std::move(buckets), clock, std::move(certificates)),
        router(context, std::move(gatekeeper), states) {
    for (size_t i = 0; i < loops.size(); ++i) {
      const net::ClientOptions client{.idle_timeout = std::chrono::seconds(options.upstream_pool_idle_timeout_secs),
                                      .tls = context.certificates.workers};
      states.push_back(std::make_unique<LoopState>(loops[i], client, context.metrics));
    }
    set_alarm();
  }

  // Whoever waits for the rate limit enters from the first loop.
  void set_alarm() {
    context.admission.set_alarm([this](Duration pause) {
      loops[0].spawn([this, pause]() -> net::Task<> {
        co_await loops[0].sleep(pause);
        context.admission.begin_due();
      });
    });
  }

  ~Impl() {
    context.draining = true;
    refresh.reset();
    exposition.reset();
    health.reset();
    server.reset();
    control.stop();
    loops.stop();
  }

  Result<void> start(Inheritance inherited) {
    const auto& options = context.options;
    context.control = &control;
    SLUICE_TRY(context.kv, KvCaches::make(options, context.clock));
    SLUICE_TRY(context.access_log, AccessLog::open(options));
    if (options.enable_trace) SLUICE_TRY_VOID(start_tracing());
    refresh = context.metrics.before_render([this] { set_gauges(); });
    if (inherited.fleet) SLUICE_TRY_VOID(take_over_fleet(context, *inherited.fleet));
    SLUICE_TRY(exposition, obs::ExpositionServer::start(context.metrics, options.prometheus_host,
                                                        static_cast<uint16_t>(options.prometheus_port),
                                                        std::move(inherited.metrics)));
    if (options.health_check_port) {
      SLUICE_TRY(health, HealthPort::start(context, options.host, static_cast<uint16_t>(*options.health_check_port),
                                           std::move(inherited.health)));
    }
    net::ServerOptions serving;
    serving.head_timeout = std::chrono::seconds(options.header_read_timeout_secs);
    serving.idle_timeout = std::chrono::seconds(options.idle_connection_timeout_secs);
    serving.body_stall_timeout = std::chrono::seconds(options.stream_body_stall_timeout_secs);
    serving.tls = context.certificates.clients;
    server = std::make_unique<net::Server>(loops, serving,
                                           [this](net::ServerExchange& client) { return router.handle(client); });
    SLUICE_TRY(port, server->listen(options.host, static_cast<uint16_t>(options.port), std::move(inherited.http)));
    if (inherited.fleet) return {};
    for (const std::string& url : options.worker_urls) {
      SLUICE_TRY_VOID(context.add_worker(url, options.api_key.value_or(""), "static"));
    }
    return {};
  }

  // The own port first, then the others: whoever watches looks until the end, and what they have begun to ask is
  // answered too, so they get a second even where the first took all the time.
  size_t drain_until(TimePoint end) {
    const auto left = [&](Duration least) { return std::max<Duration>(end - context.clock.now(), least); };
    const size_t cut_off = server->drain(left(Duration::zero()));
    if (health != nullptr) health->server().drain(left(std::chrono::seconds(1)));
    exposition->server().drain(left(std::chrono::seconds(1)));
    return cut_off;
  }

  Result<void> start_tracing() {
    SLUICE_TRY(auto endpoint, obs::parse_trace_endpoint(context.options.otlp_traces_endpoint));
    const auto counter = [&](const char* result) { return context.metrics.counter("smg_traces_total", {result}); };
    context.tracer = std::make_unique<obs::TraceExporter>(
        std::move(endpoint), obs::trace_service_name("sgl-router"),
        obs::TraceExporter::Counters{counter("exported"), counter("queue_full"), counter("failed")},
        obs::TraceExporter::Timing{}, context.certificates.traces);
    return {};
  }

  // Over all policies that remember keys; none if there is no such policy.
  template <class Count>
  std::optional<double> count_keys(Count count) {
    std::optional<double> sum;
    context.each_policy([&](const Policy& policy) {
      if (const RoutingKeys* keys = policy.routing_keys()) sum = sum.value_or(0) + static_cast<double>(count(*keys));
    });
    return sum;
  }

  // Renders' thread.
  void set_gauges() {
    auto& metrics = context.metrics;
    const auto workers = context.fleet.snapshot();
    double connections = 0;
    std::map<std::string, double> by_model, by_source;
    for (const WorkerGauge& gauge : kOfWorkers) metrics.clear(gauge.family);
    for (const EngineGauge& gauge : kOfEngines) metrics.clear(gauge.family);
    for (const char* family : {kPoolSize, kDiscovered, kKeysOfWorker, kConnections, kHitRate}) metrics.clear(family);
    KvCaches::clear(metrics);
    for (const WorkerPtr& worker : *workers) {
      const std::string model = worker->info(&Worker::Info::model_id);
      by_model[model] += 1;
      by_source[worker->info(&Worker::Info::source)] += 1;
      set_gauges_of_engine(*worker, model);
      set_gauges_of_pool(*worker);
      connections += static_cast<double>(worker->load->requests.load());
      for (const WorkerGauge& gauge : kOfWorkers) metrics.gauge(gauge.family, {worker->url}).set(gauge.value(*worker));
      if (context.kv != nullptr) context.kv->show(metrics, *worker);
      if (const auto keys = count_keys([&](const RoutingKeys& keys) { return keys.keys_of(worker->number); })) {
        metrics.gauge(kKeysOfWorker, {worker->url}).set(*keys);
      }
    }
    for (const auto& [model, count] : by_model) {
      metrics.gauge(kPoolSize, {"regular", "http", model}).set(count);
    }
    for (const auto& [source, count] : by_source) {
      metrics.gauge(kDiscovered, {source}).set(count);
    }
    set_gauges_of_ages();
    if (context.access_log != nullptr) {
      metrics.gauge("smg_log_dropped_lines").set(static_cast<double>(context.access_log->dropped()));
    }
    if (const auto keys = count_keys([](const RoutingKeys& keys) { return keys.size(); })) {
      metrics.gauge("smg_manual_policy_cache_entries").set(*keys);
    }
    // Every request that a worker works at has a connection of its own (HTTP/1.1).
    metrics.gauge("smg_worker_connections_active", {"regular", "http"}).set(connections);
    metrics.gauge("smg_admission_inflight").set(static_cast<double>(context.admission.in_flight()));
    metrics.gauge("smg_admission_queue_depth").set(static_cast<double>(context.admission.queued()));
    if (context.kv != nullptr) {
      metrics.gauge("smg_kv_index_bytes").set(static_cast<double>(context.kv->view.index.bytes()));
    }
    const auto index = context.index.stats();
    metrics.gauge("smg_prefix_index_bytes").set(static_cast<double>(index.bytes));
    metrics.gauge("smg_prefix_index_budget_bytes").set(static_cast<double>(context.options.prefix_index_bytes));
    metrics.gauge("smg_prefix_index_nodes").set(static_cast<double>(index.nodes));
    const auto evicted = [&](const char* reason, uint64_t count) {
      auto counter = metrics.counter("smg_prefix_index_evictions_total", {reason});
      counter.add(static_cast<double>(count) - counter.value());
    };
    evicted("budget", index.evictions_budget);
    evicted("size", index.evictions_size);
    evicted("worker", index.evictions_worker);
    evicted("age", index.evictions_age);
    set_hit_rates();
  }

  void set_hit_rates() {
    const TimePoint now = context.clock.now();
    const auto show = [&](const HitRates& hits, const std::string* model) {
      for (const auto& [source, rate] :
           {std::pair{"predicted", hits.predicted.value(now)}, {"reported", hits.reported.value(now)}}) {
        if (rate < 0) continue;
        obs::LabelValues labels{source};
        if (model != nullptr) labels.push_back(*model);
        context.metrics.gauge(kHitRate, std::move(labels)).set(rate);
      }
    };
    if (!context.options.enable_igw) return show(context.hits, nullptr);
    context.each_model([&](const std::string& model, const HitRates& hits) { show(hits, &model); });
  }

  void set_gauges_of_engine(const Worker& worker, const std::string& model) {
    for (const RankLoad& load : context.engine_loads.of(worker.number)) {
      const std::string rank = std::to_string(load.rank);
      for (const EngineGauge& gauge : kOfEngines) {
        const std::optional<double>& value = load.*gauge.value;
        if (value) context.metrics.gauge(gauge.family, {worker.url, model, rank}).set(*value);
      }
    }
  }

  // By address: the ranks of an engine share them. Those of health checks and other questions of the gateway itself are
  // not in the pool.
  void set_gauges_of_pool(const Worker& worker) {
    size_t idle = 0, busy = 0;
    for (const auto& state : states) {
      idle += state->client.idle_connections(worker.address);
      busy += state->client.busy_connections(worker.address);
    }
    const std::string address = worker.address.to_string();
    context.metrics.gauge(kConnections, {address, "idle"}).set(static_cast<double>(idle));
    context.metrics.gauge(kConnections, {address, "busy"}).set(static_cast<double>(busy));
  }

  void set_gauges_of_ages() {
    constexpr std::array<int, 11> kBounds{30, 60, 180, 300, 600, 1200, 3600, 7200, 14400, 28800, 86400};  // seconds
    std::array<double, kBounds.size() + 1> counts{};
    const TimePoint now = context.clock.now();
    for (const auto& state : states) {
      state->live.each_begun([&](TimePoint begun) {
        counts[static_cast<size_t>(std::ranges::lower_bound(kBounds, seconds(now - begun)) - kBounds.begin())] += 1;
      });
    }
    for (size_t i = 0; i < counts.size(); ++i) {
      const std::string above = i == 0 ? "0" : std::to_string(kBounds[i - 1]);
      const std::string to = i == kBounds.size() ? "+Inf" : std::to_string(kBounds[i]);
      context.metrics.gauge("smg_http_inflight_request_age_count", {above, to}).set(counts[i]);
    }
  }

  net::LoopGroup loops;
  Context context;
  std::vector<std::unique_ptr<LoopState>> states;
  Control control{context};
  Router router;
  std::unique_ptr<obs::ExpositionServer> exposition;
  std::unique_ptr<HealthPort> health;
  std::shared_ptr<void> refresh;
  std::unique_ptr<net::Server> server;
  uint16_t port = 0;
};

Result<std::unique_ptr<Gateway>> Gateway::start(const GatewayOptions& options, const Clock& clock,
                                                Inheritance inherited) {
  SLUICE_TRY_VOID(validate(options));
  raise_descriptor_limit();
  SLUICE_TRY(auto certificates, Certificates::load(options));
  SLUICE_TRY(auto buckets, duration_buckets(options));
  SLUICE_TRY(auto gatekeeper, Gatekeeper::from(options, std::getenv("CONTROL_PLANE_API_KEYS")));
  std::unique_ptr<Gateway> gateway(new Gateway(
      std::make_unique<Impl>(options, std::move(gatekeeper), std::move(buckets), clock, std::move(certificates))));
  SLUICE_TRY_VOID(gateway->impl_->start(std::move(inherited)));
  return gateway;
}

Gateway::Gateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gateway::~Gateway() = default;

uint16_t Gateway::port() const { return impl_->port; }
uint16_t Gateway::health_port() const { return impl_->health == nullptr ? 0 : impl_->health->port(); }
uint16_t Gateway::metrics_port() const { return impl_->exposition->port(); }
obs::Metrics& Gateway::metrics() { return impl_->context.metrics; }

void Gateway::worker_started(const std::string& url, std::optional<std::string> api_key) {
  Context& context = impl_->context;
  const WorkerPtr known = context.fleet.find(url);
  const bool had_served = known != nullptr && known->proven;
  const auto worker = context.add_worker(url, api_key.value_or(context.options.api_key.value_or("")), "static");
  SLUICE_CHECK(worker.ok(), "a worker of our own at {}: {}", url, worker.error().message);
  if (had_served) context.metrics.counter("smg_worker_restarts_total", {(*worker)->url}).add();
  for (const WorkerPtr& each : context.fleet.engine_of(**worker)) {
    if (known != nullptr) context.forget_prefixes(*each);
    context.control->started(each, /*is_another=*/known != nullptr);
  }
}

void Gateway::worker_ended(const std::string& url) {
  const WorkerPtr worker = impl_->context.fleet.find(url);
  if (worker == nullptr) return;
  for (const WorkerPtr& each : impl_->context.fleet.engine_of(*worker)) impl_->context.control->ended(each);
}

bool Gateway::heard_within(const std::string& url, Duration time) const {
  const WorkerPtr worker = impl_->context.fleet.find(url);
  if (worker == nullptr) return false;
  const int64_t since = (impl_->context.clock.now() - time).time_since_epoch().count();
  return std::ranges::any_of(impl_->context.fleet.engine_of(*worker), [since](const WorkerPtr& each) {
    const int64_t heard = each->load->heard_at.load(std::memory_order_relaxed);
    return heard != 0 && heard > since;
  });
}

size_t Gateway::drain(Duration grace) {
  const TimePoint end = impl_->context.clock.now() + grace;
  impl_->context.draining = true;
  std::this_thread::sleep_for(std::min<Duration>(grace / 2, std::chrono::seconds(5)));
  return impl_->drain_until(end);
}

Result<Inheritance> Gateway::bequeath() {
  impl_->context.bequeathed = true;
  // A change that was let in before has been made when its loop has come to this.
  std::vector<std::future<void>> turns;
  for (size_t i = 0; i < impl_->loops.size(); ++i) {
    const auto turned = std::make_shared<std::promise<void>>();
    turns.push_back(turned->get_future());
    impl_->loops[i].post([turned] { turned->set_value(); });
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  for (const auto& turn : turns) {
    if (turn.wait_until(end) != std::future_status::ready) {
      return Error{ErrorCode::kTimeout, "an event loop did nothing for 10 s while its workers were to be handed over"};
    }
  }
  return Inheritance{
      .http = impl_->server->listening_sockets(),
      .health = impl_->health == nullptr ? std::vector<net::Socket>() : impl_->health->server().listening_sockets(),
      .metrics = impl_->exposition->server().listening_sockets(),
      .fleet = fleet_document(impl_->context)};
}

void Gateway::keep_fleet() { impl_->context.bequeathed = false; }

// Readiness stays as it is: behind the address that is asked for it, somebody serves.
size_t Gateway::retire(Duration grace) {
  impl_->server->hand_over();
  if (impl_->health != nullptr) impl_->health->server().hand_over();
  impl_->exposition->server().hand_over();
  return impl_->drain_until(impl_->context.clock.now() + grace);
}

}  // namespace sluice::gateway
