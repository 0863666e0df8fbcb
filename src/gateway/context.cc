#include "gateway/context.h"

#include <algorithm>

#include "gateway/control.h"

namespace sluice::gateway {

void HitRate::add(int64_t hits, int64_t total, TimePoint now) {
  const int64_t second = std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
  std::lock_guard lock(mutex_);
  Part& part = parts_[static_cast<size_t>(second) % parts_.size()];
  if (part.second != second) part = {.second = second};
  part.hits += hits;
  part.total += total;
}

double HitRate::value(TimePoint now) const {
  const int64_t second = std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
  int64_t hits = 0, total = 0;
  std::lock_guard lock(mutex_);
  for (const Part& part : parts_) {
    if (second - part.second >= static_cast<int64_t>(parts_.size())) continue;
    hits += part.hits;
    total += part.total;
  }
  return total == 0 ? -1 : static_cast<double>(hits) / static_cast<double>(total);
}

namespace {

// Every family that the gateway shows. Who moves each: gateway/router (smg_http_*), gateway/exchange (smg_router_*,
// what a worker did), gateway/control (health, registrations), gateway/gateway (gauges).
std::vector<obs::Family> families(const std::vector<double>& buckets) {
  using obs::Kind;

  return {
      {"smg_http_requests_total", "Requests that arrived.", Kind::kCounter, {"method", "path"}},
      {"smg_http_request_duration_seconds",
       "Time to the end of an answer.",
       Kind::kHistogram,
       {"method", "path"},
       buckets},
      {"smg_http_responses_total", "Answers sent.", Kind::kCounter, {"path", "status_code", "error_code"}},
      {"smg_http_connections_active", "Requests in handlers.", Kind::kGauge},
      {"smg_http_rate_limit_total", "Decisions of the limiter.", Kind::kCounter, {"result"}},
      {"smg_admission_inflight", "Requests that hold a slot.", Kind::kGauge},
      {"smg_admission_queue_depth", "Requests that wait for a slot.", Kind::kGauge},
      {"smg_router_requests_total",
       "Requests that were routed.",
       Kind::kCounter,
       {"router_type", "backend_type", "connection_mode", "model", "endpoint", "streaming"}},
      {"smg_router_request_duration_seconds",
       "Time to the head of a 2xx answer, retries included.",
       Kind::kHistogram,
       {"router_type", "backend_type", "connection_mode", "model", "endpoint"},
       buckets},
      {"smg_router_request_errors_total",
       "Requests whose final answer was not 2xx.",
       Kind::kCounter,
       {"router_type", "backend_type", "connection_mode", "model", "endpoint", "error_type"}},
      {"smg_router_upstream_responses_total",
       "Answers of workers, per attempt.",
       Kind::kCounter,
       {"router_type", "status_code", "error_code"}},
      {"smg_router_ttft_seconds",
       "Time to the first byte of a streamed answer.",
       Kind::kHistogram,
       {"router_type", "backend_type", "model", "endpoint"},
       buckets},
      {"smg_router_generation_duration_seconds",
       "Time to the end of a 2xx answer.",
       Kind::kHistogram,
       {"router_type", "backend_type", "model", "endpoint"},
       buckets},
      {"smg_router_tokens_total",
       "Tokens that answers reported.",
       Kind::kCounter,
       {"router_type", "backend_type", "model", "endpoint", "token_type"}},
      {"smg_worker_pool_size", "Workers in the fleet.", Kind::kGauge, {"worker_type", "connection_mode"}},
      {"smg_worker_requests_active", "Requests in flight.", Kind::kGauge, {"worker"}},
      {"smg_worker_connections_active",
       "Connections to workers with a request under way.",
       Kind::kGauge,
       {"worker_type", "connection_mode"}},
      {"smg_worker_errors_total", "Attempts that ended in a fault.", Kind::kCounter, {"worker", "error_type"}},
      {"smg_worker_cb_transitions_total", "Changes of the breaker.", Kind::kCounter, {"worker", "from", "to"}},
      {"smg_worker_predicted_cached_tokens_total",
       "Prompt tokens that the prefix index expected to be cached, at four bytes each.",
       Kind::kCounter,
       {"worker"}},
      {"smg_prefix_index_evictions_total", "Claims that went.", Kind::kCounter, {"reason"}},
      {"smg_worker_requests_total", "Attempts sent to the worker.", Kind::kCounter, {"worker"}},
      {"smg_worker_health", "1 if the worker is used.", Kind::kGauge, {"worker"}},
      {"smg_worker_health_checks_total", "Health checks.", Kind::kCounter, {"worker_type", "result"}},
      {"smg_worker_selections_total", "Choices, and why.", Kind::kCounter, {"worker", "policy", "reason"}},
      {"smg_worker_cache_reported",
       "1 once the worker has reported a cached token: before that, what it holds is only predicted.",
       Kind::kGauge,
       {"worker"}},
      {"smg_worker_cache_belief",
       "Part of a predicted match that counts, by the worker's reports.",
       Kind::kGauge,
       {"worker"}},
      {"smg_worker_routing_keys_active", "Routing keys that the worker has.", Kind::kGauge, {"worker"}},
      {"smg_manual_policy_cache_entries", "Routing keys that are remembered.", Kind::kGauge},
      {"smg_worker_cb_state", "0 closed, 1 open, 2 half-open.", Kind::kGauge, {"worker"}},
      {"smg_worker_cb_outcomes_total", "Outcomes that the breaker saw.", Kind::kCounter, {"worker", "outcome"}},
      {"smg_worker_retries_total", "Attempts after the first.", Kind::kCounter, {"worker_type", "endpoint"}},
      {"smg_worker_retries_exhausted_total",
       "Requests that failed on their last attempt.",
       Kind::kCounter,
       {"worker_type", "endpoint"}},
      {"smg_worker_cached_tokens_total", "Cached prompt tokens that the worker reported.", Kind::kCounter, {"worker"}},
      {"smg_worker_prompt_tokens_total", "Prompt tokens that the worker reported.", Kind::kCounter, {"worker"}},
      {"smg_stream_aborts_total", "Answers cut short.", Kind::kCounter, {"worker", "side"}},
      {"smg_discovery_registrations_total", "Workers added.", Kind::kCounter, {"source", "result"}},
      {"smg_prefix_index_bytes", "Memory of the prefix index.", Kind::kGauge},
      {"smg_prefix_index_nodes", "Nodes of the prefix index.", Kind::kGauge},
      {"sglang_cache_hit_rate", "Share of prompts found cached, last 60 s.", Kind::kGauge, {"source"}},
  };
}

}  // namespace

namespace {

std::map<std::string, std::string, std::less<>> pairs_of(const StringList& words) {
  std::map<std::string, std::string, std::less<>> pairs;
  for (const std::string& word : words) pairs[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
  return pairs;
}

}  // namespace

Context::Context(const GatewayOptions& gateway_options, std::vector<double> buckets, const Clock& time)
    : options(gateway_options),
      clock(time),
      fleet(BreakerRules::from(options), clock),
      index({.budget_bytes = static_cast<size_t>(options.prefix_index_bytes),
             .max_bytes_per_worker = static_cast<size_t>(options.max_tree_size),
             .sweep_interval = std::chrono::seconds(options.eviction_interval_secs)}),
      policy(make_policy(options)),
      model_aliases(pairs_of(options.model_alias)),
      admission(options.max_concurrent_requests, options.queue_size, clock),
      retry(RetryRules::from(options)) {
  metrics.declare(families(buckets));
}

WorkerSeries Context::series_of(const std::string& label) {
  const auto counter = [&](const char* family, const char* value = nullptr) {
    return metrics.counter(family, value == nullptr ? obs::LabelValues{label} : obs::LabelValues{label, value});
  };
  return {.requests = counter("smg_worker_requests_total"),
          .prompt_tokens = counter("smg_worker_prompt_tokens_total"),
          .cached_tokens = counter("smg_worker_cached_tokens_total"),
          .predicted_tokens = counter("smg_worker_predicted_cached_tokens_total"),
          .breaker_success = counter("smg_worker_cb_outcomes_total", "success"),
          .breaker_failure = counter("smg_worker_cb_outcomes_total", "failure"),
          .backend_errors = counter("smg_worker_errors_total", "backend_error"),
          .timeouts = counter("smg_worker_errors_total", "timeout"),
          .aborts_client = counter("smg_stream_aborts_total", "client"),
          .aborts_worker = counter("smg_stream_aborts_total", "worker")};
}

void Context::attend(const WorkerPtr& worker) {
  worker->breaker.on_change([this, label = worker->url](BreakerState from, BreakerState to) {
    metrics
        .counter("smg_worker_cb_transitions_total", {label, std::string(to_string(from)), std::string(to_string(to))})
        .add();
  });
  control->watch(worker);
}

Result<WorkerPtr> Context::add_worker(const std::string& url, const std::string& api_key, const char* source) {
  auto address = net::parse_url(url);
  metrics.counter("smg_discovery_registrations_total", {source, address.ok() ? "success" : "failed"}).add();
  if (!address.ok()) return address.error();
  const WorkerSeries series = series_of(address->to_string());
  auto [worker, is_new] = fleet.add(std::move(*address), api_key, series);
  if (is_new) attend(worker);
  return worker;
}

void Context::expand_worker(const Worker& engine, int64_t ranks) {
  std::vector<WorkerSeries> series;
  for (int64_t rank = 0; rank < ranks; ++rank)
    series.push_back(series_of(Worker::url_of(engine.address, {rank, ranks})));
  for (const WorkerPtr& worker : fleet.expand(engine, series)) {
    worker->change_info([&](Worker::Info& info) { info = engine.info(); });
    worker->proven = true;
    worker->healthy = true;
    attend(worker);
  }
  metrics.remove_series("worker", engine.url);
}

const Context::NamedPolicy& Context::policy_of(const std::string& model) {
  std::lock_guard lock(policies_mutex_);
  const auto known = policies_.find(model);
  if (known != policies_.end()) return known->second;
  GatewayOptions named = options;
  const auto workers = fleet.snapshot();
  for (const WorkerPtr& worker : *workers) {
    const auto info = worker->info();
    if (std::ranges::find(info.model_ids, model) == info.model_ids.end()) continue;
    const auto label = info.labels.find("policy");
    if (label != info.labels.end() && find_policy(label->second) != nullptr) named.policy = label->second;
    break;
  }
  return policies_.emplace(model, NamedPolicy{named.policy, make_policy(named)}).first->second;
}

void Context::each_policy(const std::function<void(const Policy&)>& visit) const {
  visit(*policy);
  std::lock_guard lock(policies_mutex_);
  for (const auto& [model, named] : policies_) visit(*named.policy);
}

void Context::forget_prefixes(Worker& worker) {
  worker.generation.fetch_add(1, std::memory_order_relaxed);
  worker.load->belief.restart();
  index.drop_worker(worker.number);
}

}  // namespace sluice::gateway
