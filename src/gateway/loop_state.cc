#include "gateway/loop_state.h"

#include <algorithm>

#include "gateway/outcome.h"
#include "gateway/policy_branch.h"

namespace sluice::gateway {

LoopState::LoopState(net::EventLoop& event_loop, const net::ClientOptions& options, obs::Metrics& metrics)
    : loop(event_loop),
      client(event_loop, options),
      rng(random_seed()),
      metrics_(metrics),
      admitted_(metrics.counter("smg_http_rate_limit_total", {"allowed"})),
      rejected_(metrics.counter("smg_http_rate_limit_total", {"rejected"})),
      queue_wait_(metrics.histogram("smg_admission_queue_wait_seconds")) {}

bool LoopState::may_weigh_all(TimePoint now) {
  const int64_t second = std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
  if (std::exchange(weigh_second_, second) != second) weighed_ = 0;
  return weighed_++ < kWeighedPerSecond;
}

PolicySeries& LoopState::of_policy(std::string_view name) {
  const auto known = policy_series_.find(name);
  if (known != policy_series_.end()) return known->second;
  PolicySeries series{.decision = metrics_.histogram("smg_route_decision_seconds", {std::string(name)})};
  if (name == "cache_aware") series.match_ratio = metrics_.histogram("smg_cache_aware_match_ratio");
  return policy_series_.emplace(std::string(name), std::move(series)).first->second;
}

const WorkerList& LoopState::fleet(const Fleet& shared) {
  if (version_ != shared.version()) {
    version_ = shared.version();
    workers_ = shared.snapshot();
    everybody_ = nullptr;
    rosters_.clear();
    most_ranks_ = 0;
    for (const WorkerPtr& worker : *workers_) most_ranks_ = std::max(most_ranks_, worker->dp.size);
    const auto is_here = [&](uint32_t number) {
      const auto at = std::ranges::lower_bound(*workers_, number, {}, [](const auto& w) { return w->number; });
      return at != workers_->end() && (*at)->number == number;
    };
    std::erase_if(known_, [&](const auto& entry) { return !is_here(entry.first); });
  }
  return *workers_;
}

const Roster* LoopState::roster(const Fleet& shared, std::string_view model, std::optional<int64_t> rank) {
  (void)fleet(shared);
  if (model.empty() && !rank) {
    if (everybody_ == nullptr) everybody_ = shared.roster({}, std::nullopt);
    return everybody_.get();
  }
  const auto of_model = rosters_.find(model);
  if (of_model != rosters_.end()) {
    if (const auto known = of_model->second.find(rank); known != of_model->second.end()) return known->second.get();
  }
  auto roster = shared.roster(model, rank);
  if (roster == nullptr) return nullptr;  // a name that clients make up is not kept
  // Nor is a rank, of which there are none while there is no worker.
  if (roster->workers().empty()) return (nobody_ = std::move(roster)).get();
  return (rosters_[std::string(model)][rank] = std::move(roster)).get();
}

int64_t LoopState::most_ranks(const Fleet& shared) {
  (void)fleet(shared);
  return most_ranks_;
}

const routing::HashRing& LoopState::ring() {
  if (ring_version_ != version_) {
    ring_version_ = version_;
    std::vector<routing::HashRing::Member> members;
    for (const WorkerPtr& worker : *workers_) members.push_back({worker->number, worker->url});
    ring_ = routing::HashRing(members);
  }
  return ring_;
}

LoopState::KnownWorker& LoopState::known(const Worker& worker) {
  KnownWorker& known = known_[worker.number];
  const uint32_t version = worker.info_version();
  if (known.version == version) return known;
  auto info = worker.info();
  known = {.version = version, .model = std::move(info.model_id)};
  known.requests = metrics_.counter("smg_worker_requests_total", {worker.url, known.model});
  return known;
}

const std::string& LoopState::model_of(const Worker& worker) { return known(worker).model; }

const Context::NamedPolicy& LoopState::policy_of(Context& context, const std::string& model) {
  const Context::NamedPolicy*& known = policies_[model];
  if (known == nullptr) known = &context.policy_of(model);
  return *known;
}

RequestSeries& LoopState::requests(const std::string& model, Endpoint endpoint, bool stream) {
  auto& slot = requests_[model][static_cast<size_t>(endpoint) * 2 + (stream ? 1 : 0)];
  if (slot == nullptr) {
    const std::string name(to_string(endpoint));
    const obs::LabelValues labels{"http", "regular", model, name};
    slot = std::make_unique<RequestSeries>();
    slot->requests = metrics_.counter("smg_router_requests_total",
                                      {"http", "regular", "http", model, name, stream ? "true" : "false"});
    slot->retries = metrics_.counter("smg_worker_retries_total", {"regular", name});
    slot->retries_exhausted = metrics_.counter("smg_worker_retries_exhausted_total", {"regular", name});
    slot->retries_refused = metrics_.counter("smg_worker_retries_refused_total", {"regular", name});
    slot->duration =
        metrics_.histogram("smg_router_request_duration_seconds", {"http", "regular", "http", model, name});
    slot->ttft = metrics_.histogram("smg_router_ttft_seconds", labels);
    slot->tpot = metrics_.histogram("smg_router_tpot_seconds", labels);
    slot->inter_chunk = metrics_.histogram("smg_router_inter_chunk_seconds", labels);
    slot->generation = metrics_.histogram("smg_router_generation_duration_seconds", labels);
    slot->tokens_in = metrics_.counter("smg_router_tokens_total", {"http", "regular", model, name, "input"});
    slot->tokens_out = metrics_.counter("smg_router_tokens_total", {"http", "regular", model, name, "output"});
  }
  return *slot;
}

RouteSeries& LoopState::route(std::string_view method, std::string_view path) {
  auto [at, is_new] = routes_.try_emplace({method.data(), path.data()});
  if (is_new) {
    const obs::LabelValues labels{std::string(method), std::string(path)};
    at->second = {metrics_.counter("smg_http_requests_total", labels),
                  metrics_.histogram("smg_http_request_duration_seconds", labels)};
  }
  return at->second;
}

void LoopState::count_response(std::string_view path, int status, std::string_view error_code) {
  const auto resolve = [&] {
    return metrics_.counter("smg_http_responses_total",
                            {std::string(path), std::to_string(status), std::string(error_code)});
  };
  if (!error_code.empty()) {
    resolve().add();
    return;
  }
  auto [at, is_new] = responses_.try_emplace({path.data(), status});
  if (is_new) at->second = resolve();
  at->second.add();
}

void LoopState::count_upstream_response(int status) {
  auto [at, is_new] = upstream_responses_.try_emplace(status);
  if (is_new) {
    at->second = metrics_.counter("smg_router_upstream_responses_total", {"http", std::to_string(status), ""});
  }
  at->second.add();
}

void LoopState::count_request_error(const std::string& model, Endpoint endpoint, int status) {
  metrics_
      .counter("smg_router_request_errors_total",
               {"http", "regular", "http", model, std::string(to_string(endpoint)), std::string(error_type(status))})
      .add();
}

void LoopState::count_selection(const Worker& worker, std::string_view policy, Reason reason) {
  KnownWorker& of = known(worker);
  of.requests.add();
  if (of.policy != policy) {
    of.policy = policy;
    of.selection = metrics_.counter("smg_worker_selection_total", {"regular", "http", of.model, of.policy});
    of.selections = {};
  }
  of.selection.add();
  auto& why = of.selections[static_cast<size_t>(reason)];
  if (!why) {
    why = metrics_.counter("smg_worker_selections_total", {worker.url, of.policy, std::string(to_string(reason))});
  }
  why->add();
}

void LoopState::count_branch(std::string_view policy, Reason reason) {
  auto& counter = of_policy(policy).branches[static_cast<size_t>(reason)];
  if (!counter) {
    const auto branch = policy_branch(policy, reason);
    counter = branch ? metrics_.counter(branch->family, {std::string(branch->branch)}) : obs::Counter();
  }
  counter->add();
}

void LoopState::count_backoff(int64_t attempt, Duration pause) {
  const size_t place = std::min(static_cast<size_t>(attempt), kMostBackoffs) - 1;
  auto& histogram = backoffs_[place];
  if (!histogram) {
    histogram = metrics_.histogram("smg_worker_retry_backoff_seconds", {std::to_string(place + 1)});
  }
  histogram->observe(seconds(pause));
}

}  // namespace sluice::gateway
