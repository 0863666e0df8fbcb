#include "gateway/liveness.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/log.h"

namespace sluice::gateway {
namespace {

// Shorter silences are not looked into.
constexpr Duration kNoticed = std::chrono::milliseconds(500);
constexpr Duration kMargin = std::chrono::seconds(1);
constexpr int kOverdue = 2;      // looks: a gateway that was stopped itself has a moment to read what came meanwhile
constexpr int kLearnAtMost = 2;  // times what was expected
constexpr Duration kPeriod = std::chrono::minutes(10);
constexpr Duration kPatience = std::chrono::seconds(1);  // with a probe that generates, of which nothing is known

TimePoint time_of(int64_t nanoseconds) { return TimePoint(Duration(nanoseconds)); }

}  // namespace

void Liveness::Most::pass_to(TimePoint now) {
  if (now - began_ <= kPeriod) return;
  before_ = value(now);
  now_ = Duration(0);
  began_ = now;
}

Duration Liveness::Most::value(TimePoint now) const {
  const Duration age = now - began_;
  if (age > 2 * kPeriod) return Duration(0);
  return age > kPeriod ? now_ : std::max(now_, before_);
}

void Liveness::look() {
  const bool some_busy = context_.some_busy.exchange(false);
  if (settled_ && !some_busy && context_.admission.in_flight() == 0) return;
  const TimePoint now = context_.clock.now();
  const auto workers = context_.fleet.snapshot();
  bool some_narrowed = false;
  for (const WorkerPtr& worker : *workers) {
    look_at(worker, now);
    some_narrowed = worker->limit.pass(now) || some_narrowed;
  }
  if (some_narrowed) context_.some_busy = true;
  raise_limits(*workers, now);
  settled_ = std::ranges::none_of(known_, [](const auto& entry) {
    const Known& known = entry.second;
    return known.slow_since || known.quiet_since != 0 || known.worker->suspect;
  });
}

void Liveness::look_at(const WorkerPtr& worker, TimePoint now) {
  const WorkerLoad& load = *worker->load;
  const bool asked = load.requests.load(std::memory_order_relaxed) > load.held.load(std::memory_order_relaxed);
  const int64_t heard = load.heard_at.load(std::memory_order_relaxed);
  const int64_t quiet_since = std::max(heard, load.asked_at.load(std::memory_order_relaxed));
  const Duration lasts = now - time_of(quiet_since);
  auto at = known_.find(worker->number);
  if (at == known_.end()) {
    if (!asked || lasts < kNoticed) return;
    at = known_.try_emplace(worker->number).first;
    at->second.worker = worker;
    at->second.heard = heard;
  }
  Known& known = at->second;
  if (known.heard != heard) byte_came(known, heard, now);
  if (!asked || lasts < kNoticed) {
    known.quiet_since = 0;
    known.overdue = 0;
    known.in_question = false;
    return;
  }
  if (std::exchange(known.quiet_since, quiet_since) != quiet_since) {
    // Once for each silence: requests that are sent into it do not prolong what it may last.
    known.overdue = 0;
    expect(known);
  }
  known.lasts = lasts;
  if (!worker->suspect) judge(known, now);
}

void Liveness::expect(Known& known) const {
  known.explained = known.most = known.ask_after = known.put_off = std::nullopt;
  const auto backlog = known.worker->load->prefill.backlog();
  if (!backlog) return;
  known.prompts = backlog->prompts;
  const Duration more = beyond(known, context_.clock.now());
  if (backlog->whole) known.ask_after = backlog->prompts + more;
  if (!backlog->decoding) return;
  known.explained = backlog->prompts + *backlog->decoding;
  known.most = *known.explained + more;
}

// What a silence may last beyond what explains it.
Duration Liveness::beyond(const Known& known, TimePoint now) { return known.honest.value(now) + kMargin; }

void Liveness::judge(Known& known, TimePoint now) {
  if (known.ask_after && known.has_probe && !known.worker->rules().disable_health_check) {
    if (known.in_question || !is_to_ask(known, now)) return;
    known.in_question = true;
    known.question = ++questions_;
    probe_(known.worker);
    return;
  }
  if (!known.most || known.lasts <= *known.most) return;
  if (++known.overdue >= kOverdue) {
    suspect(known, fmt::format("{:.1f} s were expected at most", seconds(*known.most)));
  }
}

bool Liveness::is_to_ask(Known& known, TimePoint now) {
  const Duration since = now - std::max(time_of(known.quiet_since), known.generated_at);
  if (since <= *known.ask_after) {
    known.put_off.reset();
    return false;
  }
  // A probe would wait behind prompts that have come since. Those that had when it was due put it off, and as much may
  // come once more; not for ever.
  const auto backlog = known.worker->load->prefill.backlog();
  if (!backlog) return true;
  const Duration all = backlog->prompts + beyond(known, now);
  if (!known.put_off) known.put_off = 2 * std::max(all, *known.ask_after);
  return since > std::min(all, *known.put_off);
}

void Liveness::byte_came(Known& known, int64_t heard, TimePoint now) {
  known.heard = heard;
  known.vouched = known.lied = known.in_question = false;
  known.honest.pass_to(now);
  const bool was_quiet = std::exchange(known.quiet_since, 0) != 0;
  const bool failed_check = std::exchange(known.failed_check, false);
  if (was_quiet && known.most && !failed_check) {
    // A worker that was frozen for a while is not to have as long the next time: what is learned at once is bounded.
    const Duration learned = std::min(known.lasts, kLearnAtMost * *known.most) - *known.explained;
    known.honest.add(learned);
  }
  if (known.worker->suspect) trust(known, "it answers again");
}

Liveness::Known* Liveness::find(const Worker& worker) {
  const auto at = known_.find(worker.number);
  return at == known_.end() ? nullptr : &at->second;
}

bool Liveness::in_question(const Worker& worker) const {
  const auto at = known_.find(worker.number);
  return at != known_.end() && at->second.in_question && !worker.suspect;
}

uint64_t Liveness::question(const Worker& worker) const {
  const auto at = known_.find(worker.number);
  return at != known_.end() && at->second.in_question ? at->second.question : 0;
}

void Liveness::failed_check(const Worker& worker) {
  if (Known* known = find(worker)) known->failed_check = true;
}

// `but`: what was to be expected.
void Liveness::suspect(Known& known, std::string_view but) {
  Worker& worker = *known.worker;
  known.lied = known.lied || known.vouched;
  known.in_question = false;
  known.slow_since.reset();
  worker.limit.allow(worker.rules().disable_health_check || known.lied ? 1 : 0);
  std::string why = fmt::format("silent for {:.1f} s on {} requests, and {}", seconds(known.lasts),
                                worker.load->requests.load(), but);
  SLUICE_LOG(warn, "gateway/liveness", "worker {} is suspect: {}", worker.url, why);
  context_.metrics.counter("smg_worker_suspicions_total", {worker.url}).add();
  worker.set_suspicion(Worker::Suspicion{context_.clock.unix_nanos(), std::move(why)});
  probe_(known.worker);
}

void Liveness::trust(Known& known, std::string_view why) {
  Worker& worker = *known.worker;
  SLUICE_LOG(info, "gateway/liveness", "worker {} is not suspect any more: {}", worker.url, why);
  worker.set_suspicion(std::nullopt);
  begin_slowly(known);
}

bool Liveness::others_serve() const { return context_.admission.in_flight() > 0; }

void Liveness::before_ready(Worker& worker) const {
  worker.limit.allow(context_.options.slow_start_secs > 0 && others_serve() ? 1 : RequestLimit::kNone);
}

void Liveness::begin_slowly(Known& known) {
  before_ready(*known.worker);
  go_on_slowly(known);
}

void Liveness::go_on_slowly(Known& known) {
  const bool slow = known.worker->limit.allowed() == 1;
  known.slow_since.reset();
  if (slow) known.slow_since = context_.clock.now();
  settled_ = settled_ && !slow;
}

void Liveness::returned(const WorkerPtr& worker, bool is_new_process) {
  if (worker->suspect && !is_new_process) return;  // its health checks say nothing of that
  if (is_new_process) known_.erase(worker->number);
  worker->set_suspicion(std::nullopt);
  Known& known = known_.try_emplace(worker->number).first->second;
  known.worker = worker;
  known.heard = worker->load->heard_at;
  known.in_question = false;
  known.quiet_since = 0;
  known.overdue = 0;
  // In use already: before_ready() has decided, and the requests that are in flight since may be its own.
  if (worker->healthy) {
    go_on_slowly(known);
  } else {
    begin_slowly(known);
  }
}

Duration Liveness::patience(const Worker& worker) const {
  const Duration most = std::chrono::seconds(worker.rules().timeout_secs);
  const auto at = known_.find(worker.number);
  if (at == known_.end() || !at->second.in_question) return most;  // what a suspect takes is learned
  const Known& known = at->second;
  const auto backlog = worker.load->prefill.backlog();
  const Duration later = backlog ? backlog->prompts - known.prompts : Duration(0);
  return std::min(most, std::max(usual(known, context_.clock.now()), later));
}

// What a probe may take, by what others took lately.
Duration Liveness::usual(const Known& known, TimePoint now) {
  return std::max(kPatience, 2 * known.probe_took.value(now));
}

void Liveness::generated(Worker& worker, Duration took) {
  Known* const known = find(worker);
  if (known == nullptr) return;
  const TimePoint now = context_.clock.now();
  known->probe_took.pass_to(now);
  // A freeze that ends while a suspect is asked is little of a lesson in patience.
  known->probe_took.add(worker.suspect ? std::min(took, usual(*known, now)) : took);
  if (!worker.suspect) {
    known->in_question = false;
    known->generated_at = now;
    return;
  }
  if (known->lied) return;
  known->vouched = true;
  known->quiet_since = 0;
  known->overdue = 0;
  // What it had before may be lost: it is judged by what comes from now on.
  worker.load->asked_at = now.time_since_epoch().count();
  trust(*known, "it has generated for a probe");
}

void Liveness::generated_nothing(Worker& worker, uint64_t question, Duration waited) {
  Known* const known = find(worker);
  if (known == nullptr || !known->in_question || known->question != question || worker.suspect) return;
  known->vouched = false;  // this one did not lie
  suspect(*known, fmt::format("it generates nothing for a probe of at most {:g} s", seconds(waited)));
}

void Liveness::cannot_generate_for_probes(Worker& worker) {
  if (worker.suspect) worker.limit.allow(1);
  if (Known* const known = find(worker)) known->has_probe = known->in_question = false;
}

// Of those that begin slowly: from one request to as many as the others of the same model have on average.
void Liveness::raise_limits(const WorkerList& workers, TimePoint now) {
  const auto is_slow = [](const auto& entry) { return entry.second.slow_since.has_value(); };
  if (std::ranges::none_of(known_, is_slow)) return;
  struct Others {
    int64_t requests = 0;
    int64_t workers = 0;
  };
  std::map<std::string, Others> others;
  Others anybody;  // for one that has not said what it serves
  for (const WorkerPtr& worker : workers) {
    if (!worker->usable() || worker->limit.allowed() != RequestLimit::kNone) continue;
    for (Others* each : {&others[worker->info(&Worker::Info::model_id)], &anybody}) {
      each->requests += worker->load->requests;
      ++each->workers;
    }
  }
  const Duration all = std::chrono::seconds(context_.options.slow_start_secs);
  for (auto& [number, known] : known_) {
    if (!known.slow_since) continue;
    const std::string model = known.worker->info(&Worker::Info::model_id);
    const Others& of_model = model == "unknown" ? anybody : others[model];
    const double done = seconds(now - *known.slow_since) / seconds(all);
    if (done >= 1 || of_model.workers == 0) {
      known.slow_since.reset();
      known.worker->limit.allow(RequestLimit::kNone);
      continue;
    }
    const double mean = static_cast<double>(of_model.requests) / static_cast<double>(of_model.workers);
    known.worker->limit.allow(std::max<int64_t>(1, std::llround(done * mean)));
  }
}

}  // namespace sluice::gateway
