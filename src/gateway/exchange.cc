#include "gateway/exchange.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <span>

#include "gateway/ask.h"
#include "gateway/control.h"
#include "gateway/error_shape.h"
#include "gateway/fanout.h"
#include "gateway/report.h"
#include "gateway/selection.h"
#include "gateway/tracing.h"
#include "routing/text_mark.h"

namespace sluice::gateway {

// Made outside of coroutines, where GCC 12 takes parts of them for uninitialised.
Exchange::Failure Exchange::no_worker() const {
  Failure failure;
  failure.error = {ErrorCode::kExhausted, "no worker can take the request now"};
  if (keeper_ != nullptr) {
    failure.error.message = fmt::format("worker {}, which keeps the response {}, cannot take the request now",
                                        keeper_->id, facts_.previous);
  }
  return failure;
}

Exchange::Failure Exchange::out_of_time() const {
  Failure failure;
  failure.error = {ErrorCode::kTimeout, fmt::format("the request took longer than {} s in all, the last of them {}",
                                                    context_.options.total_timeout_secs, doing_now(record_))};
  if (asked_ == nullptr) return failure;
  failure.error.message += fmt::format(" (worker {})", asked_->id);
  failure.worker_id = asked_->id;
  return failure;
}

Exchange::Exchange(Context& context, LoopState& loop, net::ServerExchange& client, Endpoint endpoint,
                   std::string_view route, std::string id, const net::Headers& answer_headers)
    : context_(context),
      loop_(loop),
      client_(client),
      endpoint_(endpoint),
      answer_headers_(answer_headers),
      begun_(context.clock.now()) {
  record_.id = std::move(id);
  if (context.certificates.clients != nullptr) record_.scheme = "https";
  record_.method = "POST";
  record_.route = route;
  record_.started_unix_nanos = context_.clock.unix_nanos();
  record_.phases.reserve(6);  // of a stream that goes well
  if (context_.tracer != nullptr) begin_trace(client.request().headers, loop.rng, record_);
}

net::Task<Exchange::End> Exchange::run() {
  std::function<void()> on_gone = [this] {
    gone_ = true;
    interrupt();
  };
  client_.on_client_gone(std::move(on_gone));
  std::optional<net::Timer> total;
  const auto armed = arm_total(total);
  co_await serve();
  if (armed != nullptr) {
    *armed = nullptr;
    total->cancel();
  }
  std::function<void()> nothing;
  client_.on_client_gone(std::move(nothing));
  if (gone_) abort_at_worker();
  settle();
  co_return end_;
}

// Ends whatever is being waited for, but for the client.
void Exchange::interrupt() {
  if (upstream_ != nullptr) upstream_->close();
  if (waiting_ != nullptr) waiting_->cancel();
  if (asking_ != nullptr) asking_->end();
}

// Null without a limit. The timer may fire when this has gone: what it holds says so then.
std::shared_ptr<Exchange*> Exchange::arm_total(std::optional<net::Timer>& timer) {
  const int64_t limit = context_.options.total_timeout_secs;
  if (limit == 0) return nullptr;
  auto self = std::make_shared<Exchange*>(this);
  timer.emplace(loop_.loop.executor(), std::chrono::seconds(limit));
  timer->async_wait([self](const boost::system::error_code& error) {
    if (error || *self == nullptr) return;
    Exchange& exchange = **self;
    exchange.timed_out_ = true;
    exchange.interrupt();
    if (exchange.with_client_) exchange.client_.abort();
  });
  return self;
}

// The client has left. Its connection to the worker is closed already; engines that go on even so are told.
void Exchange::abort_at_worker() {
  if (!context_.options.abort_on_disconnect || !at_work_ || !facts_.rid) return;
  Question question{"POST", "/abort_request", key_headers(*asked_),
                    std::make_shared<const std::string>(fmt::format(R"({{"rid":{}}})", quoted(*facts_.rid)))};
  question.headers.add("Content-Type", "application/json");
  loop_.loop.spawn([&loop = loop_, worker = asked_, question]() -> net::Task<> {
    constexpr Duration kBound = std::chrono::seconds(5);
    Question own = question;
    const auto answer = co_await ask_worker(loop.loop, loop.client, worker, std::move(own), kBound);
    (void)answer;  // the worker may have finished, or may not know the verb
  });
}

net::Task<> Exchange::serve() {
  Admission::Slot slot;
  bool admitted = context_.admission.try_enter();
  if (!admitted) admitted = co_await queue_up();
  if (!admitted) co_return;
  slot = Admission::Slot(&context_.admission);
  loop_.count_admission(/*allowed=*/true);
  phase("admitted");
  if (gone_) co_return;
  const bool any_serves = co_await wait_for_any_worker();
  if (!any_serves) co_return;
  const bool read = co_await read_request();
  if (!read) co_return;
  if (!facts_.previous.empty()) {
    const bool may_go_on = co_await find_keeper();
    if (!may_go_on) co_return;
  }

  take_retry_rules();
  context_.retry_budget.earn(context_.clock.now());
  while (!gone_) {
    if (timed_out_) {
      co_await give_up_late();
      co_return;
    }
    ++attempts_;
    MaybeFailure failure = co_await attempt();
    if (!failure || gone_) co_return;
    const auto pause = pause_before_retry(*failure);
    if (!pause) {
      co_await give_up(std::move(*failure));
      co_return;
    }
    if (failure->answer) last_answer_ = std::move(failure->answer);
    co_await back_off(*pause);
  }
}

// Where no worker of any model can be used the body, which may be long, is not read for nothing: attempts that would be
// in vain are made without it.
net::Task<bool> Exchange::wait_for_any_worker() {
  const auto any_serves = [this] {
    return std::ranges::any_of(loop_.fleet(context_.fleet), [](const WorkerPtr& worker) { return worker->usable(); });
  };
  while (!any_serves()) {
    ++attempts_;
    Failure failure = no_worker();
    const auto pause = pause_before_retry(failure);
    if (!pause) {
      co_await give_up(std::move(failure));
      co_return false;
    }
    co_await back_off(*pause);
    series_ = nullptr;  // of a request of which nothing was known yet
    if (gone_) co_return false;
    if (timed_out_) {
      co_await give_up_late();
      co_return false;
    }
  }
  co_return true;
}

// Before another attempt.
net::Task<> Exchange::back_off(Duration pause) {
  series().retries.add();
  if (pause == Duration::zero()) co_return;
  loop_.count_backoff(attempts_, pause);
  net::Timer timer(loop_.loop.executor());
  co_await wait(timer, pause);
}

// Where there was no slot at once.
net::Task<bool> Exchange::queue_up() {
  auto waiter = std::make_shared<Admission::Waiter>();
  // The slot may be given by another loop, and after this exchange has ended: the timer is shared.
  auto timer = std::make_shared<net::Timer>(loop_.loop.executor());
  net::EventLoop& loop = loop_.loop;
  waiter->wake = [timer, &loop] { loop.post([timer] { timer->cancel(); }); };
  const auto entry = context_.admission.enter(waiter);
  if (entry == Admission::Entry::kFull) {
    co_await reject(429, "admission_queue_full", "the queue is full");
    co_return false;
  }
  if (entry == Admission::Entry::kAdmitted) co_return true;
  co_return co_await wait_for_slot(waiter, timer);
}

net::Task<bool> Exchange::wait_for_slot(std::shared_ptr<Admission::Waiter> waiter, std::shared_ptr<net::Timer> timer) {
  const TimePoint entered = context_.clock.now();
  co_await wait(*timer, std::chrono::seconds(context_.options.queue_timeout_secs));
  loop_.count_queue_wait(context_.clock.now() - entered);
  const bool granted = context_.admission.leave(waiter);
  if (timed_out_ && !gone_) {
    const Admission::Slot unused(granted ? &context_.admission : nullptr);
    loop_.count_admission(/*allowed=*/false);
    co_await give_up_late();
    co_return false;
  }
  if (granted) co_return true;
  if (!gone_) co_await reject(408, "admission_queue_timeout", "the request waited too long for its turn");
  co_return false;
}

net::Task<bool> Exchange::read_request() {
  with_client_ = true;
  auto body = co_await client_.read_body(static_cast<size_t>(context_.options.max_payload_size));
  with_client_ = false;
  if (!body.ok()) {
    if (timed_out_) note(out_of_time().error.message);
    switch (body.error().code) {
      case ErrorCode::kTooLarge:
        co_await fail(413, "request_body_too_large", body.error().message);
        break;
      case ErrorCode::kTimeout:
        co_await fail(408, "request_body_timeout", body.error().message);
        break;
      case ErrorCode::kProtocol:
        co_await fail(400, "bad_request", body.error().message);
        break;
      default:
        gone_ = true;
    }
    co_return false;
  }
  const auto whole = std::make_shared<std::string>(std::move(body).value());
  body_ = whole;
  auto facts = scan_body(*whole, endpoint_);
  if (!facts.ok()) {
    co_await fail(400, "json_parse_error", facts.error().message);
    co_return false;
  }
  facts_ = std::move(facts).value();
  if (endpoint_ == Endpoint::kRerank) {
    auto ask = read_rerank(*body_);
    if (!ask.ok()) {
      co_await fail(400, "invalid_request", ask.error().message);
      co_return false;
    }
    rerank_ = std::move(ask).value();
  }
  prompt_tokens_ = static_cast<int64_t>(facts_.routing_text.size() / 4) + 1;
  // What it goes on from comes first in the prompt, and is not here: of that prompt's text nothing is known.
  const bool is_whole = facts_.previous.empty();
  if (!is_whole) facts_.routing_text.clear();
  auto refusal = destination_.read(context_, loop_, client_.request(), facts_);
  record_.model = destination_.model();  // empty where no worker has it: clients make no labels
  if (refusal) {
    co_await fail(refusal->status, refusal->code, std::move(refusal->message));
    co_return false;
  }
  if (const size_t tokens = is_whole ? destination_.read_tokens(context_, endpoint_, *body_) : 0; tokens > 0) {
    prompt_tokens_ = static_cast<int64_t>(tokens);
  }
  record_.stream = facts_.stream;
  record_.prompt_bytes = facts_.routing_text.size() - destination_.salt();
  record_.prompt_hash = routing::text_hash(std::string_view(facts_.routing_text).substr(destination_.salt()));
  phase("read");
  co_return true;
}

// Where workers have their own those of the first count, whichever is chosen: with it the model was registered.
void Exchange::take_retry_rules() {
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr || roster->workers().empty()) return;
  const Worker& first = *roster->workers().front();
  if (first.has_own_rules()) retry_ = first.rules().retry();
}

// What it goes on from is kept by one worker. Where all say that they do not have it the one that is chosen will say so
// to the client; where one could not be asked, it may be the one, and a 404 would be believed.
net::Task<bool> Exchange::find_keeper() {
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr) co_return true;
  WorkerList candidates = roster->workers();
  asking_ = std::make_shared<Interruption>();
  const Keeper found =
      co_await keeper_of_response(context_, loop_, std::move(candidates), client_.request(), facts_.previous, asking_);
  asking_.reset();
  keeper_ = found.who;
  if (found.silent.empty() || gone_ || timed_out_) co_return true;
  co_await unavailable("no_available_workers", nobody_keeps(facts_.previous, found.silent),
                       context_.seconds_until_back(found.silent));
  co_return false;
}

WorkerList Exchange::bound_to(const Roster& roster) const {
  const std::string engine = keeper_ == nullptr ? std::string() : keeper_->address.to_string();
  WorkerList bound;
  for (const WorkerPtr& worker : roster.workers()) {
    if (keeper_ == nullptr ? worker == target_ : worker->address.to_string() == engine) bound.push_back(worker);
  }
  return bound;
}

std::optional<Choice> Exchange::choose_bound(const Roster& roster, TimePoint now, Reason reason) {
  const auto number = select_of(bound_to(roster), tried_, now, loop_.choices);
  if (!number) return std::nullopt;
  Choice choice = Choice::of(*number, reason);
  choice.takes_work = roster.worker(*number)->takes_work(now);
  return choice;
}

// Somebody who names a worker wants that one and no other, whatever became of the first attempt.
Choice Exchange::choose_target(const Roster& roster, uint64_t place, TimePoint now) {
  if (target_ == nullptr) target_ = usable_at(roster, place);
  if (target_ == nullptr) return Choice::none();
  return choose_bound(roster, now, Reason::kTarget).value_or(Choice::none());
}

std::optional<Choice> Exchange::choose_once(const Roster& roster, const RequestFacts& facts) {
  if (keeper_ != nullptr) return choose_bound(roster, facts.now, Reason::kKeepsResponse);
  const Policy& policy = destination_.policy();
  std::optional<Choice> choice;
  if (const auto place = destination_.target()) {
    choice = choose_target(roster, *place, facts.now);
  } else {
    choice = select_worker(roster, policy, facts, tried_, policy.needs_ring() ? &loop_.ring() : nullptr, loop_.choices,
                           loop_.rng);
  }
  if (choice) loop_.of_policy(destination_.policy_name()).decision.observe(seconds(context_.clock.now() - facts.now));
  return choice;
}

// So often a choice is made anew because another was made at the same moment; after that it stands.
constexpr int kLooksAgain = 2;

// A worker with the permit of its breaker and a lease; null if none can take the request now.
WorkerPtr Exchange::choose(Breaker::Permit& permit, std::optional<WorkerLease>& lease) {
  WorkerPtr worker;
  std::optional<Choice> choice;
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr) return nullptr;
  RequestFacts facts = destination_.facts(context_, facts_, prompt_tokens_, context_.clock.now());
  claim_.reset();
  // A trial of a half-open worker, or the last place that a worker has, may go to another request between the look and
  // the grasp; then there is one fewer. Or another loop has just sent the like of this one elsewhere: that is looked
  // at.
  for (int looks_again = kLooksAgain;;) {
    choice = choose_once(*roster, facts);
    if (!choice) return nullptr;
    if (!choice->worker) {
      loop_.count_branch(destination_.policy_name(), choice->reason);
      return nullptr;
    }
    worker = roster->worker(*choice->worker);
    if (!worker->breaker.begin(permit)) continue;
    record_choice(*roster, facts, *worker, *choice);
    lease.emplace(worker->load, work(choice->match_rate), context_.clock);
    const bool has_place =
        !choice->takes_work || lease->others() < worker->load->most_requests.load(std::memory_order_relaxed);
    const bool is_latest = !has_place || !choice->insert_prefix ||
                           claim_prefix(*worker, choice->match_rate, facts.prefix, looks_again > 0);
    if (has_place && is_latest) break;
    lease.reset();
    worker->breaker.neutral(permit);
    forget_choice();
    if (is_latest) continue;
    --looks_again;
    facts = destination_.facts(context_, facts_, prompt_tokens_, context_.clock.now());
  }
  tried_.push_back(worker->number);
  loop_.count_selection(*worker, destination_.policy_name(), choice->reason);
  loop_.count_branch(destination_.policy_name(), choice->reason);
  if (destination_.policy().needs_prefix() && keeper_ == nullptr)
    loop_.of_policy(destination_.policy_name()).match_ratio.observe(facts.prefix.rate());
  matched_share_ = choice->match_rate;
  if (worker->suspect.load(std::memory_order_relaxed)) note("suspect, as are all that could be used");
  return worker;
}

// At once, so that requests alike that come with this one go where it goes; an attempt that fails takes it back.
bool Exchange::claim_prefix(Worker& worker, double matched_share, const routing::PrefixMatch& found, bool only_latest) {
  const std::string_view text = facts_.routing_text;
  routing::CacheBelief& belief = worker.load->belief;
  const routing::KnownText known{.owner = facts_.routing_text.owner(body_), .place = found.place};
  const auto number = only_latest
                          ? context_.index.insert_if_latest(text, worker.number, found, belief.limit_bytes(), known)
                          : context_.index.insert(text, worker.number, belief.limit_bytes(), known);
  if (!number) return false;
  const auto new_bytes = static_cast<size_t>((1 - matched_share) * static_cast<double>(text.size()));
  belief.sent(new_bytes);
  claim_ = {.number = *number, .new_bytes = new_bytes, .made_at = context_.clock.now()};
  destination_.sent_to(context_, worker, claim_->made_at);
  return true;
}

// The worker refused the request, or failed before it answered: what it held before is all that it holds.
void Exchange::withdraw_claim() {
  if (!claim_) return;
  asked_->load->belief.unsent(claim_->new_bytes);
  context_.index.withdraw(facts_.routing_text, asked_->number, claim_->number);
  destination_.unsent(context_, *asked_, claim_->made_at);
  claim_.reset();
}

// What the index had predicted of an answer that has come.
void Exchange::count_prediction(Worker& worker) {
  if (!destination_.policy().needs_prefix() || record_.prompt_bytes == 0) return;
  const auto prompt = static_cast<double>(record_.prompt_bytes);
  const double matched = matched_share_ * prompt;
  const TimePoint now = context_.clock.now();
  for (HitRates* hits : {&context_.hits, destination_.hits()}) {
    if (hits != nullptr) hits->predicted.add(static_cast<int64_t>(matched), static_cast<int64_t>(prompt), now);
  }
  if (matched > 0) worker.series.predicted_tokens.add(matched / 4);
}

void Exchange::count_reported(int64_t cached_tokens, int64_t prompt_tokens) {
  const TimePoint now = context_.clock.now();
  for (HitRates* hits : {&context_.hits, destination_.hits()}) {
    if (hits != nullptr) hits->reported.add(cached_tokens, prompt_tokens, now);
  }
}

// Before the choice changes anything.
void Exchange::record_choice(const Roster& roster, const RequestFacts& facts, const Worker& worker,
                             const Choice& choice) {
  obs::RequestRecord::Try& made = record_.tries.emplace_back();
  made.worker = worker.url;
  made.number = worker.number;
  made.policy = destination_.policy_name();
  made.reason = to_string(choice.reason);
  made.matched_share = choice.match_rate;
  if (loop_.may_weigh_all(facts.now)) weigh_all(roster, destination_.policy(), facts, tried_, made.scores);
  if (made.scores.empty()) {
    for (const Score& score : std::span(choice.scores).first(choice.num_scores)) {
      made.scores.push_back(
          {.worker = score.worker, .cost = score.cost, .matched_share = facts.prefix.rate_of(score.worker)});
    }
  }
  phase("chosen");
}

// It came to nothing.
void Exchange::forget_choice() {
  record_.tries.pop_back();
  record_.phases.pop_back();
}

void Exchange::record_failure(const Failure& failure) {
  if (failure.worker_id.empty()) return note(failure.error.message);
  obs::RequestRecord::Try& last = record_.tries.back();
  last.failed_at = elapsed();
  last.status = failure.answer ? failure.answer->status : 0;
  if (!failure.answer) last.error = failure.error.message;
}

bool Exchange::others_left() {
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr) return false;
  const TimePoint now = context_.clock.now();
  if (!is_bound()) return any_untried(*roster, tried_, now);
  const WorkerList bound = bound_to(*roster);
  return std::ranges::any_of(bound, [&](const WorkerPtr& worker) { return why_not(*worker, tried_, now).empty(); });
}

// What ended one rank of an engine is likely to end the others, and where all of them share a step, it has: they count
// as tried while another engine could take the request now.
void Exchange::set_engine_aside() {
  if (is_bound()) return;  // no other engine may have the request
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr || asked_ == nullptr || asked_->dp.rank < 0) return;
  std::vector<uint32_t> with_siblings = tried_;
  for (const WorkerPtr& worker : roster->workers()) {
    const bool is_sibling = worker->dp.rank >= 0 && worker->address.authority() == asked_->address.authority();
    if (is_sibling && std::ranges::find(tried_, worker->number) == tried_.end())
      with_siblings.push_back(worker->number);
  }
  if (any_untried(*roster, with_siblings, context_.clock.now())) tried_ = std::move(with_siblings);
}

// A worker that the request never reached, or that died with it, has cost the others nothing: moving on to one of them
// needs no budget and no pause. But the request may be what kills: those that had it move on so only once.
bool Exchange::moves_on_freely(const Failure& failure) {
  const bool broke = failure.error.code == ErrorCode::kRefused || failure.error.code == ErrorCode::kReset;
  if (!(failure.answer ? failure.rank_ended : broke)) return false;
  return !failure.reached || !std::exchange(outlived_one_, true);
}

std::optional<Duration> Exchange::pause_before_retry(const Failure& failure) {
  record_failure(failure);
  if (timed_out_) return std::nullopt;
  if (attempts_ >= retry_.attempts) {
    if (attempts_ > 1) series().retries_exhausted.add();
    return std::nullopt;
  }
  if (failure.worker_id.empty()) {
    if (loop_.fleet(context_.fleet).empty()) return std::nullopt;
    return retry_.pause(pauses_++, std::nullopt, loop_.rng);
  }
  if (failure.outcome == Outcome::kFault && failure.error.code != ErrorCode::kExhausted) set_engine_aside();
  const bool others = others_left();
  if (others && moves_on_freely(failure)) return Duration::zero();
  if (!context_.retry_budget.spend(context_.clock.now())) {
    series().retries_refused.add();
    note("no other attempt: the budget of retries is used up");
    return std::nullopt;
  }
  if (failure.outcome == Outcome::kBusy && others) return Duration::zero();
  return retry_.pause(pauses_++, failure.retry_after, loop_.rng);
}

net::Task<> Exchange::give_up_late() {
  Failure failure = out_of_time();
  note(failure.error.message);
  co_await give_up(std::move(failure));
}

net::Task<> Exchange::give_up(Failure failure) {
  if (!failure.answer && last_answer_ && !timed_out_) failure.answer = std::move(last_answer_);
  if (failure.answer) {
    co_await answer(std::move(*failure.answer));
  } else if (failure.error.code == ErrorCode::kTimeout) {
    co_await fail(504, "call_upstream_timeout", failure.error.message);
  } else if (failure.error.code == ErrorCode::kExhausted && !failure.worker_id.empty()) {
    // Requests that end give theirs back.
    co_await unavailable("gateway_exhausted", "the gateway has no descriptor or port left for a connection to a worker",
                         context_.admission.retry_after_seconds());
  } else if (failure.worker_id.empty()) {
    co_await unavailable("no_available_workers", failure.error.message, seconds_without_worker());
  } else {
    co_await fail(502, "call_upstream_connection_failed",
                  fmt::format("the connection to worker {} failed", failure.worker_id));
  }
}

// Ends when `duration` has passed, the timer is cancelled, or the client has left.
net::Task<> Exchange::wait(net::Timer& timer, Duration duration) {
  if (gone_) co_return;
  timer.expires_after(duration);
  waiting_ = &timer;
  boost::system::error_code ended;
  co_await timer.async_wait(net::asio::redirect_error(net::use_task, ended));
  waiting_ = nullptr;
}

net::Task<> Exchange::answer(net::Response response) {
  if (gone_) co_return;
  for (const auto& [name, value] : answer_headers_) response.headers.add(name, value);
  end_.status = response.status;
  end_.head_at = context_.clock.now();
  record_.answer_bytes = response.body.size();
  with_client_ = true;
  const auto sent = co_await client_.respond(std::move(response));
  with_client_ = false;
  if (!sent.ok()) gone_ = true;
}

net::Task<> Exchange::fail(int status, std::string_view code, std::string message) {
  end_.error_code = std::string(code);
  if (attempts_ == 0) note(message);
  net::Response response = error_response(status, code, message);
  co_await answer(std::move(response));
}

net::Task<> Exchange::unavailable(std::string_view code, std::string message, int64_t retry_after) {
  end_.error_code = std::string(code);
  if (attempts_ == 0) note(message);
  net::Response response = error_response(503, code, message);
  response.headers.set("Retry-After", std::to_string(retry_after));
  co_await answer(std::move(response));
}

int64_t Exchange::seconds_without_worker() {
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr) return context_.seconds_until_back({});
  return context_.seconds_until_back(is_bound() ? bound_to(*roster) : roster->workers());
}

// The limiter's no, with the time after which a slot is likely to be free.
net::Task<> Exchange::reject(int status, std::string_view code, std::string message) {
  loop_.count_admission(/*allowed=*/false);
  end_.error_code = std::string(code);
  note(message);
  net::Response response = error_response(status, code, message);
  response.headers.set("Retry-After", std::to_string(context_.admission.retry_after_seconds()));
  co_await answer(std::move(response));
}

RequestSeries& Exchange::series() {
  if (series_ == nullptr) {
    static const std::string kUnknown = "unknown";
    series_ = &loop_.requests(record_.model.empty() ? kUnknown : record_.model, endpoint_, facts_.stream);
  }
  return *series_;
}

void Exchange::count_request() {
  if (!std::exchange(counted_, true)) series().requests.add();
}

void Exchange::note(std::string_view text) {
  if (!record_.detail.empty()) record_.detail += "; ";
  record_.detail += text;
}

void Exchange::settle() {
  count_request();
  Outcome outcome = classify(end_.status);
  if (gone_) {
    outcome = Outcome::kClientGone;
  } else if (end_.error_code == "stream_error") {
    outcome = Outcome::kFault;
  }
  if (end_.status >= 300) {
    loop_.count_request_error(record_.model.empty() ? "unknown" : record_.model, endpoint_, end_.status);
  }
  record_.attempts = static_cast<int>(attempts_);
  record_.status = end_.status;
  record_.outcome = to_string(outcome);
  record_.error_code = end_.error_code;
  record_.took = elapsed();
  report(context_, client_, std::move(record_));
}

}  // namespace sluice::gateway
