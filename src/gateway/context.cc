#include "gateway/context.h"

#include <algorithm>
#include <cmath>

#include "gateway/access_log.h"
#include "gateway/control.h"
#include "gateway/kv_events/kv_caches.h"
#include "gateway/metric_families.h"
#include "gateway/selection.h"
#include "obs/trace_exporter.h"

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

std::map<std::string, std::string, std::less<>> pairs_of(const StringList& words) {
  std::map<std::string, std::string, std::less<>> pairs;
  for (const std::string& word : words) pairs[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
  return pairs;
}

}  // namespace

Context::Context(const GatewayOptions& gateway_options, std::vector<double> buckets, const Clock& time,
                 Certificates loaded_certificates)
    : options(gateway_options),
      certificates(std::move(loaded_certificates)),
      clock(time),
      fleet(BreakerRules::from(options), clock),
      index({.budget_bytes = static_cast<size_t>(options.prefix_index_bytes),
             .max_bytes_per_worker = static_cast<size_t>(options.max_tree_size),
             .sweep_interval = std::chrono::seconds(options.eviction_interval_secs),
             .max_age = kUnusedRounds * std::chrono::seconds(options.eviction_interval_secs),
             .clock = &clock}),
      policy(make_policy(options)),
      model_aliases(pairs_of(options.model_alias)),
      admission(options.max_concurrent_requests > 0 ? options.max_concurrent_requests : -1, options.queue_size, clock,
                static_cast<double>(options.rate_limit_tokens_per_second)),
      retry(RetryRules::from(options)) {
  metrics.declare(metric_families(buckets, options.enable_igw));
}

Context::~Context() = default;

WorkerSeries Context::series_of(const std::string& label) {
  const auto counter = [&](const char* family, const char* value = nullptr) {
    return metrics.counter(family, value == nullptr ? obs::LabelValues{label} : obs::LabelValues{label, value});
  };
  const auto errors = [&](const char* type) {
    return metrics.counter("smg_worker_errors_total", {"regular", "http", type, label});
  };
  return {.prompt_tokens = counter("smg_worker_prompt_tokens_total"),
          .cached_tokens = counter("smg_worker_cached_tokens_total"),
          .predicted_tokens = counter("smg_worker_predicted_cached_tokens_total"),
          .breaker_success = counter("smg_worker_cb_outcomes_total", "success"),
          .breaker_failure = counter("smg_worker_cb_outcomes_total", "failure"),
          .backend_errors = errors("backend_error"),
          .timeouts = errors("timeout"),
          .aborts_client = counter("smg_stream_aborts_total", "client"),
          .aborts_worker = counter("smg_stream_aborts_total", "worker"),
          .aborts_gateway = counter("smg_stream_aborts_total", "gateway")};
}

void Context::attend(const WorkerPtr& worker) {
  worker->breaker.on_change([this, label = worker->url](BreakerState from, BreakerState to) {
    metrics
        .counter("smg_worker_cb_transitions_total", {label, std::string(to_string(from)), std::string(to_string(to))})
        .add();
  });
  control->watch(worker);
}

Result<net::Url> parse_worker_url(std::string_view text) {
  if (text.find(',') != std::string_view::npos) {
    return Error{ErrorCode::kInvalidArgument,
                 fmt::format("'{}' is not the URL of one worker: several stand side by side with spaces between them, "
                             "as in http://a:8000 http://b:8000",
                             text)};
  }
  SLUICE_TRY(auto url, net::parse_url(text));
  const bool has_port = text.substr(0, text.find('/')).find(':') != std::string_view::npos;
  if (text.find("://") == std::string_view::npos && !has_port) {
    return Error{
        ErrorCode::kInvalidArgument,
        fmt::format("'{0}' has neither a scheme nor a port: http://{0} is port 80 there, {0}:8000 port 8000", text)};
  }
  return url;
}

Result<void> check_api_key(std::string_view api_key) {
  // It goes out in a head, and to a successor in a document.
  if (std::ranges::all_of(api_key, [](char c) { return c >= ' ' && c <= '~'; })) return {};
  return Error{ErrorCode::kInvalidArgument, "api_key must be printable ASCII"};
}

// Of one that is there already there is nothing to queue. One that has taken too long has had its place.
Result<void> Context::room_for(const net::Url& address) const {
  if (const WorkerPtr known = fleet.find(address.to_string()); known != nullptr && !known->draining) return {};
  const auto workers = fleet.snapshot();
  const int64_t waiting = std::ranges::count_if(
      *workers, [](const WorkerPtr& worker) { return !worker->proven && !worker->failed && !worker->draining; });
  if (waiting < options.job_queue_capacity) return {};
  return Error{
      ErrorCode::kExhausted,
      fmt::format("{} workers wait for their first health check to pass, as many as --job-queue-capacity allows",
                  waiting)};
}

Result<WorkerPtr> Context::add_worker(const std::string& url, const std::string& api_key, const char* source,
                                      bool is_bounded, const std::string& id) {
  auto address = parse_worker_url(url);
  const auto key = check_api_key(api_key);
  if (!address.ok() || !key.ok()) {
    metrics.counter("smg_discovery_registrations_total", {source, "failed"}).add();
    return address.ok() ? key.error() : address.error();
  }
  std::pair<WorkerPtr, bool> added;
  {
    const std::lock_guard lock(coming_and_going_);
    if (const auto room = is_bounded ? room_for(*address) : Result<void>(); !room.ok()) {
      metrics.counter("smg_discovery_registrations_total", {source, "failed"}).add();
      return room.error();
    }
    const WorkerSeries series = series_of(address->to_string());
    added = fleet.add(std::move(*address), api_key, series, id);
  }
  auto& [worker, is_new] = added;
  if (is_new) {
    metrics.counter("smg_discovery_registrations_total", {source, "success"}).add();
    worker->change_info([&](Worker::Info& info) {
      info.source = source;
      info.rules = WorkerRules::from(options);
    });
    attend(worker);
  } else if (!api_key.empty()) {
    SLUICE_TRY_VOID(change_key(*worker, api_key));
  }
  return worker;
}

Result<void> Context::change_key(const Worker& worker, const std::string& api_key) {
  SLUICE_TRY_VOID(check_api_key(api_key));
  for (const WorkerPtr& each : fleet.engine_of(worker)) {
    if (each->api_key() == api_key) continue;
    each->change_api_key(api_key);
    control->key_changed(each);
  }
  return {};
}

void Context::change_rules(const WorkerPtr& worker, const WorkerRuleChanges& changes) {
  if (changes.empty()) return;
  worker->change_rules(changes);
  control->rules_changed(worker);
}

void Context::expand_worker(const Worker& engine, int64_t ranks) {
  std::vector<WorkerPtr> workers;
  {
    const std::lock_guard lock(coming_and_going_);
    std::vector<WorkerSeries> series;
    for (int64_t rank = 0; rank < ranks; ++rank)
      series.push_back(series_of(Worker::url_of(engine.address, {rank, ranks})));
    workers = fleet.expand(engine, series);
    metrics.remove_series("worker", engine.url);
  }
  for (const WorkerPtr& worker : workers) {
    worker->change_info([&](Worker::Info& info) { info = engine.info(); });
    worker->change_rules(engine.info().rule_changes);
    attend(worker);
    control->started(worker, /*is_another=*/false);
  }
}

void Context::remove_series(const Worker& worker) {
  const std::lock_guard lock(coming_and_going_);
  if (fleet.find(worker.url) == nullptr) metrics.remove_series("worker", worker.url);
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
  return policies_.emplace(model, NamedPolicy{.name = named.policy, .policy = make_policy(named)}).first->second;
}

void Context::each_model(const std::function<void(const std::string&, const HitRates&)>& visit) const {
  std::lock_guard lock(policies_mutex_);
  for (const auto& [model, named] : policies_) visit(model, *named.hits);
}

void Context::each_policy(const std::function<void(const Policy&)>& visit) const {
  visit(*policy);
  std::lock_guard lock(policies_mutex_);
  for (const auto& [model, named] : policies_) visit(*named.policy);
}

int64_t Context::seconds_until_back(const WorkerList& workers) const {
  const auto left = comes_back(workers, clock.now());
  if (!left) return admission.retry_after_seconds();
  return std::max<int64_t>(1, std::llround(std::ceil(seconds(*left))));
}

void Context::forget_prefixes(Worker& worker) {
  worker.generation.fetch_add(1, std::memory_order_relaxed);
  worker.load->belief.restart();
  index.drop_worker(worker.number);
  if (kv != nullptr) kv->view.forget_sent(worker.number, clock.now());
}

}  // namespace sluice::gateway
