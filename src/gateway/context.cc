#include "gateway/context.h"

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

Context::Context(const GatewayOptions& gateway_options, std::vector<double> buckets)
    : options(gateway_options),
      clock(real_clock()),
      fleet(BreakerRules::from(options), clock),
      index({.budget_bytes = static_cast<size_t>(options.prefix_index_bytes),
             .max_bytes_per_worker = static_cast<size_t>(options.max_tree_size),
             .sweep_interval = std::chrono::seconds(options.eviction_interval_secs)}),
      policy(find_policy(options.policy)->make(options)),
      admission(options.max_concurrent_requests, options.queue_size),
      retry(RetryRules::from(options)) {
  using obs::Kind;
  metrics.declare({
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
      {"smg_worker_requests_total", "Attempts sent to the worker.", Kind::kCounter, {"worker"}},
      {"smg_worker_health", "1 if the worker is used.", Kind::kGauge, {"worker"}},
      {"smg_worker_health_checks_total", "Health checks.", Kind::kCounter, {"worker_type", "result"}},
      {"smg_worker_selections_total", "Choices, and why.", Kind::kCounter, {"worker", "policy", "reason"}},
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
  });
}

Result<WorkerPtr> Context::add_worker(const std::string& url, const std::string& api_key, const char* source) {
  auto added = fleet.add(url, api_key);
  metrics.counter("smg_discovery_registrations_total", {source, added.ok() ? "success" : "failed"}).add();
  if (!added.ok()) return added.error();
  const WorkerPtr worker = added->first;
  if (added->second) control->watch(worker);
  return worker;
}

void Context::forget_prefixes(Worker& worker) {
  worker.generation.fetch_add(1, std::memory_order_relaxed);
  index.drop_worker(worker.number);
}

}  // namespace sluice::gateway
