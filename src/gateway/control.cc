#include "gateway/control.h"

#include <boost/asio/redirect_error.hpp>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "gateway/ask.h"
#include "gateway/client_json.h"
#include "gateway/kv_events/attendant.h"
#include "net/stream.h"

namespace sluice::gateway {

using Json = nlohmann::ordered_json;

struct Control::Watch {
  Watch(WorkerPtr which, HealthRules rules, net::EventLoop& loop)
      : worker(std::move(which)), health(rules), timer(loop.executor()) {}

  const WorkerPtr worker;
  HealthState health;
  net::Timer timer;
  bool failed_before = false;  // the last probe failed
  bool refused = false;        // the last probe was refused: nobody listens there
  bool is_named = false;       // the last probe's answer says which process it is
  bool has_new_name = false;   // and that it is another one
  bool process_ended = false;  // it was since the worker served last: whoever answers next is a new process
  bool polled = false;         // a question for its load is under way
  bool in_line = false;        // for being asked for the first time
  TimePoint begun{};           // when it is first expected to answer
  TimePoint probed_at{};       // when the last probe began
  TimePoint next_probe{};
  std::optional<uint32_t> models_of;       // the generation of the worker whose models are known, or that tells none
  TimePoint models_due{};                  // not asked for again before
  Duration models_pause{};                 // since they last did not come
  bool reads_models = false;               // beside its checks
  std::optional<uint32_t> events_of;       // the generation whose KV events are attended to
  bool changed = false;                    // what is known of it, by others, since run() last looked
  std::string_view removal = "requested";  // why, once it is draining
  std::string failure;                     // why the last probe failed, as it was logged
  int64_t failed_in_a_row = 0;             // probes, since somebody was told
  uint64_t told = 0;                       // how often somebody who knows better has spoken

  bool wants_models() const { return worker->healthy && !reads_models && models_of != worker->generation; }
  void ask_models_soon() {
    models_due = {};
    models_pause = {};
  }

  // A probe that began before counts for nothing, and so do those that failed.
  void tell() {
    ++told;
    failed_in_a_row = 0;
  }
};

net::Headers key_headers(const Worker& worker) {
  net::Headers headers;
  if (!worker.api_key().empty()) headers.add("Authorization", "Bearer " + worker.api_key());
  return headers;
}

namespace {

constexpr int64_t kMostRanks = 1024;
constexpr Duration kInformation = std::chrono::seconds(10);  // for its models and its ranks
constexpr Duration kFirstPause = std::chrono::seconds(1);    // until it is asked for them again; doubled each time
constexpr Duration kLastPause = std::chrono::seconds(60);
constexpr Duration kLong = std::chrono::hours(24 * 365);

// Of a worker that says how many requests wait and not how long they are, each is taken for the length that it would be
// taken for if it said nothing.
int64_t waiting_tokens(const LoadReport& report, int64_t mean_prefill_tokens) {
  if (report.waiting_tokens >= 0) return report.waiting_tokens;
  constexpr int64_t kMost = 1'000'000;  // of requests: the other factor is bounded
  return std::clamp<int64_t>(report.waiting_requests, 0, kMost) * mean_prefill_tokens;
}

bool has_no_such_route(int status) { return status == 404 || status == 405 || status == 501; }

}  // namespace

Control::Control(Context& context)
    : context_(context),
      client_(loop_, net::ClientOptions{.tls = context.certificates.workers}),
      liveness_(context, [this](const WorkerPtr& worker) { suspect(worker); }) {
  loop_.start();
  loop_.spawn([this] { return watch_progress(); });
  if (context_.certificates.any()) loop_.spawn([this] { return watch_certificates(); });
  const bool policy_asks = (context_.policy->needs_engine_load() || context_.options.enable_igw) &&
                           !context_.options.disable_load_monitoring;
  if (policy_asks || context_.options.engine_metrics) {
    loop_.spawn([this] { return poll_loads(); });
  }
}

Control::~Control() { stop(); }

void Control::stop() {
  loop_.stop();
  loop_.join();
}

void Control::with_watch(const WorkerPtr& worker, std::function<void(Watch&)> act) {
  loop_.post([this, worker, act = std::move(act)] {
    const auto at = watches_.find(worker.get());
    if (at == watches_.end()) return;
    act(*at->second);
    at->second->changed = true;  // run() may be in the middle of a probe, and no timer be there to cancel
    at->second->timer.cancel();
  });
}

void Control::watch(WorkerPtr worker) {
  loop_.post([this, worker] {
    auto watch = std::make_shared<Watch>(worker, worker->rules().health(), loop_);
    watch->begun = context_.clock.now() + std::chrono::seconds(context_.options.worker_startup_delay);
    watch->next_probe = watch->begun;
    // started() may have been quicker.
    if (worker->healthy) watch->health.force(true);
    if (worker->healthy) liveness_.returned(worker, /*is_new_process=*/true);
    watches_[worker.get()] = watch;
    loop_.spawn([this, watch] { return run(watch); });
  });
}

void Control::suspect(WorkerPtr worker) {
  with_watch(worker, [](Watch& watch) { watch.health.suspect(); });
}

void Control::served_before(WorkerPtr worker) {
  with_watch(worker, [this](Watch& watch) { watch.begun = watch.next_probe = context_.clock.now(); });
}

// What was learned from the faults and the queue of the process that is gone.
void Control::forget_process(Worker& worker) {
  worker.breaker.reset();
  worker.busy_until = 0;
  worker.limit.forget_busy();
  worker.load->prefill.restart();
  forget_load(worker);
}

// What it said of its load holds no more.
void Control::forget_load(const Worker& worker) {
  context_.engine_loads.set(worker.number, {});
  worker.load->polled_tokens = -1;
}

void Control::started(WorkerPtr worker, bool is_another) {
  // How many ranks it has is asked first; it is not used before.
  if (context_.options.dp_aware && worker->dp.rank < 0 && !worker->proven) {
    with_watch(worker, [](Watch&) {});
    return;
  }
  forget_process(*worker);
  // The first process of a worker may have answered a probe already: then no other one is to come.
  if (is_another) worker->process.expect_new();
  worker->proven = true;
  liveness_.before_ready(*worker);
  worker->healthy = true;
  with_watch(worker, [this](Watch& watch) {
    watch.tell();
    liveness_.returned(watch.worker, /*is_new_process=*/true);
    watch.process_ended = false;  // whoever says so has dropped what was believed
    watch.health.force(true);
    watch.worker->healthy = true;  // again: a probe may have ended in between
  });
}

// What was believed of its cache is dropped at once, by whoever sees it.
void Control::restarted(WorkerPtr worker) {
  context_.forget_prefixes(*worker);
  with_watch(worker, [this](Watch& watch) {
    watch.process_ended = false;
    begin_anew(watch);
  });
}

void Control::begin_anew(Watch& watch) {
  Worker& worker = *watch.worker;
  SLUICE_LOG(info, "gateway/health", "worker {} has restarted", worker.url);
  forget_process(worker);
  load_sources_.forget(worker.number);  // it may have come back as another version
  liveness_.before_ready(worker);
  liveness_.returned(watch.worker, /*is_new_process=*/true);
  watch.ask_models_soon();
}

void Control::ended(WorkerPtr worker) {
  worker->healthy = false;
  with_watch(worker, [](Watch& watch) {
    watch.tell();
    watch.health.force(false);
    watch.worker->healthy = false;
  });
}

void Control::remove(WorkerPtr worker) {
  worker->draining = true;
  with_watch(worker, [](Watch&) {});
}

void Control::rules_changed(WorkerPtr worker) {
  with_watch(worker, [this](Watch& watch) {
    Worker& worker = *watch.worker;
    watch.health.set_rules(worker.rules().health());
    if (is_probed(worker)) return;
    watch.tell();  // a check that is under way would put it out for good
    if (worker.healthy || worker.draining) return;
    // Nobody asks any more whether it is back: its requests show.
    watch.health.force(true);
    SLUICE_LOG(info, "gateway/health", "worker {} is used whatever its checks said: it has none any more", worker.url);
    liveness_.returned(watch.worker, /*is_new_process=*/false);
    worker.healthy = true;
  });
}

void Control::key_changed(WorkerPtr worker) {
  with_watch(worker, [](Watch& watch) {
    watch.health.suspect();
    watch.models_of.reset();
    watch.ask_models_soon();
  });
}

// The answer to a GET, all of it within `bound` however slowly it comes.
net::Task<Result<net::Response>> Control::ask(WorkerPtr worker, std::string target, Duration bound) {
  Question question{"GET", std::move(target), key_headers(*worker), nullptr};
  co_return co_await ask_worker(loop_, client_, std::move(worker), std::move(question), bound);
}

net::Task<std::optional<bool>> Control::probe(std::shared_ptr<Watch> watch) {
  const Worker& worker = *watch->worker;
  const auto bound = std::chrono::seconds(worker.rules().timeout_secs);
  const auto answer = co_await ask(watch->worker, context_.options.health_check_endpoint, bound);
  if (!answer.ok() && answer.error().code == ErrorCode::kExhausted) {
    context_.metrics.counter("smg_worker_health_checks_total", {"regular", "exhausted"}).add();
    SLUICE_LOG_EVERY(10, error, "gateway/health", "{}", answer.error().message);
    co_return std::nullopt;
  }
  const bool passed = answer.ok() && answer->status >= 200 && answer->status < 300;
  const auto name = passed ? answer->headers.get(ProcessMark::kHeader) : std::nullopt;
  watch->is_named = name.has_value();
  watch->has_new_name = name && watch->worker->process.changes_to(*name, context_.clock.now());
  watch->refused = !answer.ok() && answer.error().code == ErrorCode::kRefused;
  context_.metrics.counter("smg_worker_health_checks_total", {"regular", passed ? "success" : "error"}).add();
  const std::string failure = passed        ? std::string()
                              : answer.ok() ? fmt::format("status {}", answer->status)
                                            : answer.error().message;
  if (failure != watch->failure && !passed) {
    SLUICE_LOG(warn, "gateway/health", "worker {} fails its checks: {}", worker.url, failure);
  }
  watch->failure = failure;
  co_return passed;
}

net::Task<> Control::read_models(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  const uint32_t generation = worker.generation;
  watch->models_pause = std::clamp(2 * watch->models_pause, kFirstPause, kLastPause);
  watch->models_due = context_.clock.now() + watch->models_pause;
  const auto answer = co_await ask(watch->worker, "/v1/models", kInformation);
  if (answer.ok() && has_no_such_route(answer->status)) watch->models_of = generation;
  if (!answer.ok() || answer->status != 200) co_return;
  const auto parsed = parse_client_json(answer->body);
  if (!parsed.ok()) co_return;
  const Json& document = *parsed;
  if (!document.is_object() || !document.contains("data") || !document["data"].is_array()) co_return;
  watch->models_of = generation;
  watch->models_pause = {};
  std::vector<std::string> ids;
  for (const auto& entry : document["data"]) {
    if (entry.is_object() && entry.contains("id") && entry["id"].is_string()) ids.push_back(entry["id"]);
  }
  worker.change_info([&](Worker::Info& info) {
    info.models = answer->body;
    if (info.models_are_given || ids.empty()) return;
    info.model_id = ids.front();
    info.model_ids = std::move(ids);
  });
}

// Its checks go on meanwhile, however long the answer takes.
net::Task<> Control::read_models_beside(std::shared_ptr<Watch> watch) {
  co_await read_models(watch);
  watch->reads_models = false;
  watch->timer.cancel();  // for the next time, if they did not come
}

// Data-parallel ranks of the engine; 1 where it does not say, none where it could not be asked.
net::Task<std::optional<int64_t>> Control::read_ranks(std::shared_ptr<Watch> watch) {
  const Worker& worker = *watch->worker;
  for (const char* path : {"/server_info", "/get_server_info"}) {
    const auto answer = co_await ask(watch->worker, path, kInformation);
    if (answer.ok() && has_no_such_route(answer->status)) continue;
    if (!answer.ok() || answer->status != 200) {
      SLUICE_LOG_EVERY(10, warn, "gateway/control",
                       "worker {} is not used before it says how many data-parallel ranks it has: {}: {}", worker.url,
                       path, answer.ok() ? fmt::format("status {}", answer->status) : answer.error().message);
      co_return std::nullopt;
    }
    const auto parsed = parse_client_json(answer->body);
    if (!parsed.ok()) break;
    const Json& document = *parsed;
    if (!document.is_object() || !document.contains("dp_size") || !document["dp_size"].is_number_integer()) break;
    co_return std::clamp<int64_t>(document["dp_size"].get<int64_t>(), 1, kMostRanks);
  }
  SLUICE_LOG(warn, "gateway/control", "worker {} does not say how many data-parallel ranks it has: taken for one",
             worker.url);
  co_return 1;
}

bool Control::is_probed(const Worker& worker) { return !worker.proven || !worker.rules().disable_health_check; }

net::Task<> Control::run(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  while (!worker.draining) {
    if (is_probed(worker) && context_.clock.now() >= watch->next_probe) {
      const bool registers = !worker.proven;
      if (registers) {
        const bool is_its_turn = co_await take_turn(watch);
        if (!is_its_turn) continue;
      }
      const bool is_watched = co_await examine(watch);
      if (registers) {
        --registering_;
        wake_next();
      }
      if (!is_watched) co_return;
    }
    if (worker.draining) break;
    if (watch->wants_models() && context_.clock.now() >= watch->models_due) {
      watch->reads_models = true;
      loop_.spawn([this, watch] { return read_models_beside(watch); });
    }
    if (const uint32_t generation = worker.generation; worker.healthy && watch->events_of != generation) {
      watch->events_of = generation;
      attend_kv(watch->worker);
    }
    if (worker.draining) break;
    co_await wait_for_probe(watch);
  }
  co_await drain(watch);
}

// Until it may be asked beside others that never served. False: it need not be any more.
net::Task<bool> Control::take_turn(std::shared_ptr<Watch> watch) {
  const Worker& worker = *watch->worker;
  const auto is_next = [&] { return in_line_.empty() || in_line_.front() == watch; };
  while (!worker.draining && !worker.proven && (registering_ >= context_.options.job_queue_concurrency || !is_next())) {
    if (!std::exchange(watch->in_line, true)) in_line_.push_back(watch);
    watch->timer.expires_after(kLong);
    boost::system::error_code woken;
    co_await watch->timer.async_wait(net::asio::redirect_error(net::use_task, woken));
  }
  if (std::exchange(watch->in_line, false)) std::erase(in_line_, watch);
  const bool is_its_turn = !worker.draining && !worker.proven;
  if (is_its_turn) ++registering_;
  wake_next();
  co_return is_its_turn;
}

void Control::wake_next() {
  if (!in_line_.empty() && registering_ < context_.options.job_queue_concurrency) in_line_.front()->timer.cancel();
}

// Until the next probe is due, or somebody has news.
net::Task<> Control::wait_for_probe(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  if (std::exchange(watch->changed, false)) {
    // At once after a fault, and no sooner after the last one than any.
    const TimePoint now = context_.clock.now();
    watch->next_probe = std::min(watch->next_probe, std::max(now, watch->probed_at + watch->health.next_probe()));
    if (!worker.proven) watch->next_probe = std::max(now, watch->begun);
  }
  const bool probes = is_probed(worker);
  worker.checked_at = probes ? (watch->next_probe + watch->health.after_probe()).time_since_epoch().count() : 0;
  const TimePoint now = context_.clock.now();
  TimePoint next = probes ? watch->next_probe : now + kLong;
  if (watch->wants_models()) next = std::min(next, watch->models_due);
  watch->timer.expires_after(next - now);
  boost::system::error_code woken;
  co_await watch->timer.async_wait(net::asio::redirect_error(net::use_task, woken));
}

// Asks the worker whether it serves, and goes by what it says. False: its ranks are watched in its place.
net::Task<bool> Control::examine(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  const bool registers = !worker.proven;
  watch->probed_at = context_.clock.now();
  // Progress first: one that is frozen would take all the time of an ordinary check.
  if (liveness_.in_question(worker)) {
    co_await prove(watch);
    if (worker.draining) co_return true;
  }
  const uint64_t told = watch->told;
  const std::optional<bool> passed = co_await probe(watch);
  if (passed && told == watch->told) {
    bool serves = *passed;
    if (serves && registers) {
      const Ranks ranks = co_await replace_by_ranks(watch);
      if (ranks == Ranks::kWatched) co_return false;
      serves = ranks == Ranks::kOne;
    }
    if (told == watch->told) take_verdict(*watch, serves);
  }
  if (worker.suspect && !watch->failed_before) co_await prove(watch);
  // Until it is trusted again, or has shown progress.
  if (worker.suspect || liveness_.in_question(worker)) watch->health.suspect();
  plan_next_probe(*watch);
  if (context_.options.remove_unhealthy_workers && is_lost(*watch)) {
    SLUICE_LOG(warn, "gateway/health", "worker {} has failed for too long and is removed", worker.url);
    watch->removal = "unhealthy";
    worker.draining = true;
  }
  co_return true;
}

// Of a worker that passes for the first time: reads its models and, where ranks are chosen one by one, how many it has.
net::Task<Control::Ranks> Control::replace_by_ranks(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  const uint64_t told = watch->told;
  co_await read_models(watch);
  if (!context_.options.dp_aware || worker.dp.rank >= 0) co_return Ranks::kOne;
  const std::optional<int64_t> ranks = co_await read_ranks(watch);
  if (!ranks || told != watch->told) co_return Ranks::kUnknown;
  if (*ranks <= 1 || worker.draining) co_return Ranks::kOne;
  context_.expand_worker(worker, *ranks);
  liveness_.forget(worker);
  watches_.erase(&worker);
  co_return Ranks::kWatched;
}

void Control::take_verdict(Watch& watch, bool passed) {
  Worker& worker = *watch.worker;
  if (passed) {
    watch.health.passed();
    // A process that names itself is the one that it says.
    const bool is_other = std::exchange(watch.process_ended, false) && !watch.is_named;
    if (std::exchange(watch.has_new_name, false) || is_other) {
      if (is_other) worker.process.expect_new();
      context_.forget_prefixes(worker);
      begin_anew(watch);
    }
    // One that passed all along may fail all its requests even so: the breaker's own time counts then.
    if (watch.failed_before && worker.breaker.recovered()) {
      context_.metrics.counter("smg_worker_cb_health_readmissions_total", {worker.url}).add();
    }
    worker.breaker.probe_passed();
  } else {
    watch.health.failed();
    liveness_.failed_check(worker);
    watch.process_ended = watch.process_ended || (watch.refused && worker.proven);
  }
  watch.failed_before = !passed;
  watch.failed_in_a_row = passed ? 0 : watch.failed_in_a_row + 1;
  const bool healthy = watch.health.healthy();
  if (healthy == worker.healthy) return;
  SLUICE_LOG(info, "gateway/health", "worker {} is {}", worker.url, healthy ? "ready" : "not ready");
  if (healthy) liveness_.returned(watch.worker, /*is_new_process=*/!worker.proven);
  if (healthy) worker.proven = true;
  worker.healthy = healthy;
}

void Control::plan_next_probe(Watch& watch) {
  const auto& options = context_.options;
  Worker& worker = *watch.worker;
  const TimePoint now = context_.clock.now();
  Duration pause = watch.health.next_probe(worker.breaker.open_for());
  if (!worker.proven) {
    const bool late = now - watch.begun > std::chrono::seconds(options.worker_startup_timeout_secs);
    worker.failed = late;
    if (!late) pause = std::chrono::seconds(options.worker_startup_check_interval);
  }
  watch.next_probe = now + pause;
}

// One that starts may fail its checks for as long as it may take to start.
bool Control::is_lost(const Watch& watch) {
  const Worker& worker = *watch.worker;
  return worker.proven ? watch.failed_in_a_row >= 3 * worker.rules().failure_threshold : worker.failed.load();
}

// Beside everything else: a worker is used before anybody knows what its cache holds.
void Control::attend_kv(const WorkerPtr& worker) {
  if (context_.kv == nullptr) return;
  if (!context_.policy->needs_prefix() && !context_.options.enable_igw) {
    context_.kv->judge(worker->number, {.why = "the policy does not ask what a worker holds"});
    return;
  }
  loop_.spawn([this, worker] { return attend_kv_events(context_, loop_, client_, worker); });
}

net::Task<> Control::drain(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  const TimePoint begun = context_.clock.now();
  const auto settle = std::chrono::seconds(worker.rules().drain_settle_secs);
  const auto grace = std::max<Duration>(settle, std::chrono::seconds(context_.options.shutdown_grace_period_secs));
  for (;;) {
    const Duration passed = context_.clock.now() - begun;
    if (passed >= settle && (worker.load->requests.load() == 0 || passed >= grace)) break;
    co_await loop_.sleep(std::chrono::milliseconds(50));
  }
  context_.fleet.erase(worker);
  context_.engine_loads.set(worker.number, {});
  load_sources_.forget(worker.number);
  context_.metrics
      .counter("smg_discovery_deregistrations_total", {worker.info(&Worker::Info::source), std::string(watch->removal)})
      .add();
  context_.index.drop_worker(worker.number);
  if (context_.kv != nullptr) context_.kv->forget(worker.number);
  client_.forget(worker.address);
  context_.remove_series(worker);
  SLUICE_LOG(info, "gateway/fleet", "worker {} was removed", worker.url);
  liveness_.forget(worker);
  watches_.erase(&worker);
}

// Their files are looked at once a second: a change that is seen so late is in time, and links that are turned are seen
// too, which watching files does not show.
net::Task<> Control::watch_certificates() {
  for (;;) {
    co_await loop_.sleep(std::chrono::seconds(1));
    context_.certificates.reload_changed();
  }
}

// Whether a worker that is suspect or in question generates, where the engine has a question for that. That of an
// engine says nothing of one rank.
net::Task<> Control::prove(std::shared_ptr<Watch> watch) {
  Worker& worker = *watch->worker;
  if (worker.dp.rank >= 0) {
    liveness_.cannot_generate_for_probes(worker);
    co_return;
  }
  const uint64_t question = liveness_.question(worker);
  const Duration bound = liveness_.patience(worker);
  const TimePoint asked_at = context_.clock.now();
  const auto answer = co_await ask(watch->worker, "/health_generate", bound);
  const int status = answer.ok() ? answer->status : 0;
  // What this gateway lacks, and that the worker has much to do, say nothing of it.
  if ((!answer.ok() && answer.error().code == ErrorCode::kExhausted) || status == 429) co_return;
  if (status / 100 == 2) {
    liveness_.generated(worker, context_.clock.now() - asked_at);
  } else if (status / 100 == 3 || (status / 100 == 4 && status != 408) || status == 501) {
    liveness_.cannot_generate_for_probes(worker);
  } else {
    liveness_.generated_nothing(worker, question, bound);
  }
}

net::Task<> Control::watch_progress() {
  for (;;) {
    liveness_.look();
    const bool idle = context_.admission.in_flight() == 0 && liveness_.is_settled();
    co_await loop_.sleep(idle ? Liveness::kIdleInterval : Liveness::kInterval);
  }
}

net::Task<> Control::poll_loads() {
  for (;;) {
    const auto workers = context_.fleet.snapshot();
    // Each on its own: one that hangs does not make the others' figures old.
    for (const WorkerPtr& worker : *workers) {
      if (worker->healthy) {
        loop_.spawn([this, worker] { return poll_load(worker); });
      } else {
        forget_load(*worker);
      }
    }
    co_await loop_.sleep(std::chrono::seconds(context_.options.load_monitor_interval));
  }
}

// One at a time, so that no report is taken for newer than it is. What is sent while the engine answers counts until
// the next report, whether this one has seen it or not.
net::Task<> Control::poll_load(WorkerPtr worker) {
  const auto at = watches_.find(worker.get());
  if (at == watches_.end() || std::exchange(at->second->polled, true)) co_return;
  const auto watch = at->second;
  WorkerLoad& load = *worker->load;
  load.polls.fetch_add(1, std::memory_order_relaxed);
  const int64_t tokens = load.tokens_since_poll, prompt = load.prompt_since_poll;
  const auto report = co_await read_load(loop_, client_, load_sources_, worker);
  watch->polled = false;
  if (!watches_.contains(worker.get())) co_return;  // removed meanwhile, and its series with it
  context_.metrics
      .counter("smg_engine_load_polls_total", {worker->url, std::string(report ? to_string(report->source) : "failed")})
      .add();
  if (context_.options.engine_metrics) {
    context_.engine_loads.set(worker->number, report ? report->ranks : std::vector<RankLoad>());
  }
  if (report) {
    load.polled_waiting_tokens = waiting_tokens(*report, context_.options.least_load_mean_prefill_tokens);
    load.polled_kv_usage = report->kv_usage;
    load.polled_throughput = report->throughput;
    if (report->max_tokens > 0) load.belief.capacity(static_cast<size_t>(report->max_tokens));
  }
  load.polled_tokens = report ? report->used_tokens : -1;
  load.tokens_since_poll -= tokens;
  load.prompt_since_poll -= prompt;
}

}  // namespace sluice::gateway
