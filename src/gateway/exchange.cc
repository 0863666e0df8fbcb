#include "gateway/exchange.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <charconv>

#include "gateway/ask.h"
#include "gateway/control.h"
#include "gateway/error_shape.h"
#include "gateway/forward.h"
#include "gateway/report.h"
#include "gateway/selection.h"
#include "gateway/tracing.h"
#include "routing/text_mark.h"

namespace sluice::gateway {
namespace {

constexpr size_t kWholeAnswer = 4 << 20;  // answers of known length up to this are relayed in one write
constexpr int64_t kDefaultNewTokens = 128;
constexpr int64_t kMostNewTokens = 1 << 20;               // what a client or a worker may make us believe
constexpr Duration kBusyPause = std::chrono::seconds(1);  // of a worker that is busy and does not say for how long

std::optional<size_t> content_length(const net::Headers& headers) {
  const auto text = headers.get("content-length");
  size_t length = 0;
  if (!text || std::from_chars(text->data(), text->data() + text->size(), length).ec != std::errc()) {
    return std::nullopt;
  }
  return length;
}

// What the net layer says of a worker, which it knows by its address, for a client, who knows it by its id.
std::string by_id(std::string message, const Worker& worker) {
  const auto replace = [&](const std::string& text, const std::string& by) {
    for (size_t at = 0; (at = message.find(text, at)) != std::string::npos; at += by.size()) {
      message.replace(at, text.size(), by);
    }
  };
  replace(worker.address.authority(), "worker " + worker.id);
  replace("'" + worker.address.host + "'", "its name");
  return message;
}

bool ends_event(std::string_view stream) { return stream.ends_with("\n\n") || stream.ends_with("\r\n\r\n"); }

}  // namespace

// A lease on a worker, the breaker's permit and the connection. Without a verdict the breaker learns nothing.
struct Exchange::Upstream {
  Upstream(Exchange& of, WorkerPtr which, Breaker::Permit breaker_permit)
      : exchange(of), worker(std::move(which)), permit(breaker_permit) {
    const Work work{.prompt_tokens = of.prompt_tokens_,
                    .new_tokens = std::min(of.facts_.max_tokens.value_or(kDefaultNewTokens), kMostNewTokens),
                    .matched_share = of.matched_share_,
                    .streams = of.facts_.stream};
    lease.emplace(worker->load, work, of.context_.clock);
  }
  ~Upstream() { release(); }

  // The worker has done its part, or is left alone.
  void release() {
    exchange.upstream_ = nullptr;
    connection.reset();
    lease.reset();
    judge(Outcome::kClientGone);
  }

  // The first verdict counts.
  void judge(Outcome outcome) {
    if (std::exchange(judged, true)) return;
    switch (outcome) {
      case Outcome::kOk:
      case Outcome::kClientError:
        worker->breaker.success(permit);
        worker->series.breaker_success.add();
        return;
      case Outcome::kFault:
        worker->breaker.fault(permit);
        worker->series.breaker_failure.add();
        exchange.context_.control->suspect(worker);
        return;
      case Outcome::kBusy:
      case Outcome::kClientGone:
        worker->breaker.neutral(permit);
        return;
    }
  }

  Failure failed(Error error) {
    exchange.at_work_ = false;
    if (exchange.timed_out_) {  // what the request took in all is nobody's fault
      release();
      return exchange.out_of_time();
    }
    error.message = by_id(std::move(error.message), *worker);
    (error.code == ErrorCode::kTimeout ? worker->series.timeouts : worker->series.backend_errors).add();
    judge(Outcome::kFault);
    release();
    Failure failure;
    failure.error = std::move(error);
    failure.worker_id = worker->id;
    return failure;
  }

  Exchange& exchange;
  const WorkerPtr worker;
  const Breaker::Permit permit;
  bool judged = false;
  std::optional<WorkerLease> lease;
  std::unique_ptr<net::ClientExchange> connection;
};

// Made outside of coroutines, where GCC 12 takes parts of them for uninitialised.
Exchange::Failure Exchange::no_worker() {
  Failure failure;
  failure.error = {ErrorCode::kExhausted, "no worker can take the request now"};
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

Exchange::Failure Exchange::failure_with(net::Response answer, Outcome outcome, std::optional<Duration> retry_after,
                                         const Worker& worker) {
  Failure failure;
  failure.answer = std::move(answer);
  failure.outcome = outcome;
  failure.retry_after = retry_after;
  failure.worker_id = worker.id;
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
    if (exchange.writing_) exchange.client_.abort();
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
  const bool admitted = co_await admit(slot);
  if (!admitted) co_return;
  const bool read = co_await read_request();
  if (!read) co_return;

  context_.retry_budget.earn();
  while (!gone_) {
    if (timed_out_) {
      Failure failure = out_of_time();
      note(failure.error.message);
      co_await give_up(std::move(failure));
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
    series().retries.add();
    if (*pause > Duration::zero()) {
      loop_.count_backoff(attempts_, *pause);
      net::Timer timer(loop_.loop.executor());
      co_await wait(timer, *pause);
    }
  }
}

net::Task<bool> Exchange::admit(Admission::Slot& slot) {
  bool admitted = context_.admission.try_enter();
  if (!admitted) {
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
    admitted = entry == Admission::Entry::kAdmitted;
    if (!admitted) admitted = co_await wait_for_slot(waiter, timer);
    if (!admitted) co_return false;
  }
  slot = Admission::Slot(&context_.admission);
  loop_.count_admission(/*allowed=*/true);
  phase("admitted");
  co_return !gone_;
}

net::Task<bool> Exchange::wait_for_slot(std::shared_ptr<Admission::Waiter> waiter, std::shared_ptr<net::Timer> timer) {
  const TimePoint entered = context_.clock.now();
  co_await wait(*timer, std::chrono::seconds(context_.options.queue_timeout_secs));
  loop_.count_queue_wait(context_.clock.now() - entered);
  const bool granted = context_.admission.leave(waiter);
  if (granted) co_return true;
  if (!gone_) co_await reject(408, "admission_queue_timeout", "the request waited too long for its turn");
  co_return false;
}

net::Task<bool> Exchange::read_request() {
  auto body = co_await client_.read_body(static_cast<size_t>(context_.options.max_payload_size));
  if (!body.ok()) {
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
  body_ = std::move(body).value();
  auto facts = scan_body(body_, endpoint_);
  if (!facts.ok()) {
    co_await fail(400, "json_parse_error", facts.error().message);
    co_return false;
  }
  facts_ = std::move(facts).value();
  if (endpoint_ == Endpoint::kRerank) {
    auto ask = read_rerank(body_);
    if (!ask.ok()) {
      co_await fail(400, "invalid_request", ask.error().message);
      co_return false;
    }
    rerank_ = std::move(ask).value();
  }
  prompt_tokens_ = static_cast<int64_t>(facts_.routing_text.size() / 4) + 1;
  if (auto refusal = destination_.read(context_, loop_, client_.request(), facts_)) {
    co_await fail(refusal->status, refusal->code, std::move(refusal->message));
    co_return false;
  }
  if (const size_t tokens = destination_.read_tokens(context_, endpoint_, body_); tokens > 0) {
    prompt_tokens_ = static_cast<int64_t>(tokens);
  }
  record_.stream = facts_.stream;
  record_.prompt_bytes = facts_.routing_text.size() - destination_.salt();
  record_.prompt_hash = routing::text_hash(facts_.routing_text.substr(destination_.salt()));
  phase("read");
  co_return true;
}

std::optional<Choice> Exchange::choose_once(const Roster& roster) {
  const TimePoint now = context_.clock.now();
  const Policy& policy = destination_.policy();
  const RequestFacts facts = destination_.facts(context_, facts_, prompt_tokens_, now);
  found_share_ = facts.prefix.rate();
  const auto choice = select_worker(roster, policy, facts, tried_, policy.needs_ring() ? &loop_.ring() : nullptr,
                                    loop_.candidates, loop_.rng);
  if (choice) loop_.of_policy(destination_.policy_name()).decision.observe(seconds(context_.clock.now() - now));
  return choice;
}

WorkerPtr Exchange::choose(Breaker::Permit& permit) {
  WorkerPtr worker;
  std::optional<Choice> choice;
  const Roster* roster = destination_.roster(context_, loop_);
  if (roster == nullptr) return nullptr;
  // A trial of a half-open worker may go to another request between the look and the grasp; then there is one fewer.
  do {
    choice = choose_once(*roster);
    if (!choice) return nullptr;
    if (!choice->worker) {
      loop_.count_branch(destination_.policy_name(), choice->reason);
      return nullptr;
    }
    worker = roster->worker(*choice->worker);
  } while (!worker->breaker.begin(permit));

  tried_.push_back(worker->number);
  loop_.count_selection(*worker, destination_.policy_name(), choice->reason);
  loop_.count_branch(destination_.policy_name(), choice->reason);
  if (destination_.policy().needs_prefix())
    loop_.of_policy(destination_.policy_name()).match_ratio.observe(found_share_);
  matched_share_ = choice->match_rate;
  const std::string_view text = facts_.routing_text;
  if (choice->insert_prefix) {
    routing::CacheBelief& belief = worker->load->belief;
    belief.sent(static_cast<size_t>((1 - matched_share_) * static_cast<double>(text.size())));
    context_.index.insert(text, worker->number, belief.limit_bytes());
    destination_.sent_to(context_, *worker);
  }
  const size_t prompt = text.size() - destination_.salt();
  if (destination_.policy().needs_prefix() && prompt > 0) {
    const double matched = choice->match_rate * static_cast<double>(prompt);
    context_.predicted.add(static_cast<int64_t>(matched), static_cast<int64_t>(prompt), context_.clock.now());
    if (matched > 0) worker->series.predicted_tokens.add(matched / 4);
  }
  record_choice(*worker, *choice);
  if (worker->suspect.load(std::memory_order_relaxed)) note("suspect, as are all that could be used");
  return worker;
}

void Exchange::record_choice(const Worker& worker, const Choice& choice) {
  obs::RequestRecord::Try& made = record_.tries.emplace_back();
  made.worker = worker.url;
  made.number = worker.number;
  made.policy = destination_.policy_name();
  made.reason = to_string(choice.reason);
  made.matched_share = choice.match_rate;
  made.scores.reserve(choice.num_scores);
  for (int i = 0; i < choice.num_scores; ++i) made.scores.push_back({choice.scores[i].worker, choice.scores[i].cost});
  phase("chosen");
}

void Exchange::record_failure(const Failure& failure) {
  if (failure.worker_id.empty()) return note(failure.error.message);
  obs::RequestRecord::Try& last = record_.tries.back();
  last.failed_at = elapsed();
  last.status = failure.answer ? failure.answer->status : 0;
  if (!failure.answer) last.error = failure.error.message;
}

net::Task<Exchange::MaybeFailure> Exchange::attempt() {
  Breaker::Permit permit;
  const WorkerPtr worker = choose(permit);
  if (worker == nullptr) {
    count_request();
    co_return no_worker();
  }
  if (record_.model.empty()) {
    record_.model = destination_.model().empty() ? loop_.model_of(*worker) : destination_.model();
  }
  count_request();
  const auto& options = context_.options;
  const net::ClientTimeouts timeouts{
      .connect = std::chrono::seconds(options.connect_timeout_secs),
      .head = std::chrono::seconds(options.response_head_timeout_secs.value_or(options.request_timeout_secs)),
      .silence = std::chrono::seconds(options.stream_idle_timeout_secs.value_or(options.request_timeout_secs))};
  Upstream upstream(*this, worker, permit);
  asked_ = worker;
  at_work_ = true;
  const BodyChanges changes = destination_.changes_for(*worker);
  const std::string changed = changes.any() ? changed_body(body_, facts_, changes) : std::string();
  // Twice at most: a kept-alive connection may have been closed by the worker just before the request reached it.
  for (bool replayed = false;; replayed = true) {
    net::RequestHead head = upstream_head(client_.request(), *worker, !body_.empty());
    if (record_.trace) pass_on(record_, head.headers);
    std::function<void(net::ClientExchange&)> on_exchange = [this](net::ClientExchange& exchange) {
      upstream_ = &exchange;
    };
    auto sent = co_await loop_.client.send(worker->address, std::move(head), changes.any() ? changed : body_, timeouts,
                                           std::move(on_exchange));
    if (!sent.ok()) {
      upstream_ = nullptr;
      if (gone_) co_return std::nullopt;
      co_return upstream.failed(std::move(sent).error());
    }
    upstream.connection = std::move(sent).value();
    upstream_ = upstream.connection.get();
    phase("sent");
    auto answered = co_await upstream.connection->read_head();
    if (gone_) co_return std::nullopt;
    if (answered.ok()) {
      net::ResponseHead answer_head = std::move(answered).value();
      co_return co_await relay(upstream, std::move(answer_head));
    }
    const bool was_dead =
        answered.error().code == ErrorCode::kReset && upstream.connection->reused() && !upstream.connection->answered();
    if (!was_dead || replayed) co_return upstream.failed(std::move(answered).error());
    upstream_ = nullptr;
    upstream.connection.reset();
    loop_.client.forget(worker->address);  // what else is kept has been idle for longer: the next one is fresh
  }
}

net::Task<Exchange::MaybeFailure> Exchange::relay(Upstream& upstream, net::ResponseHead head) {
  loop_.count_upstream_response(head.status);
  const auto length = content_length(head.headers);
  // An answer that may lead to another attempt is looked at whole, and so is one that is rebuilt.
  if (is_retryable(head.status) || rerank_ || (length && *length <= kWholeAnswer)) {
    co_return co_await relay_whole(upstream, std::move(head));
  }
  co_return co_await relay_stream(upstream, std::move(head));
}

net::Task<Exchange::MaybeFailure> Exchange::relay_whole(Upstream& upstream, net::ResponseHead head) {
  Worker& worker = *upstream.worker;
  auto body = co_await upstream.connection->read_all();
  if (gone_) co_return std::nullopt;
  if (!body.ok()) co_return upstream.failed(std::move(body).error());

  at_work_ = false;
  const Outcome outcome = classify(head.status, head.headers, *body);
  net::Response response{head.status, headers_of(head, worker), std::move(body).value(), head.reason,
                         upstream.connection->trailers()};
  upstream.judge(outcome);
  if (head.status / 100 == 2) {
    learn(response.body, upstream);
  } else {
    worker.load->heard(context_.clock.now());
  }
  upstream.release();
  if (is_retryable(head.status)) {
    const auto comes_back = retry_after(head.headers);
    if (outcome == Outcome::kBusy) {
      const TimePoint until = context_.clock.now() + comes_back.value_or(kBusyPause);
      worker.busy_until = until.time_since_epoch().count();
    } else {
      (error_type(head.status) == "timeout" ? worker.series.timeouts : worker.series.backend_errors).add();
    }
    co_return failure_with(std::move(response), outcome, comes_back, worker);
  }
  phase("answered");
  const bool good = head.status / 100 == 2;
  if (good) {
    series().duration.observe(seconds(context_.clock.now() - begun_));
    if (const auto rebuilt = rebuild_rerank(response); !rebuilt.ok()) {
      co_await fail(500, "rerank_response_build_failed",
                    fmt::format("worker {}: {}", worker.id, rebuilt.error().message));
      co_return std::nullopt;
    }
  }
  co_await answer(std::move(response));
  if (good && !gone_) series().generation.observe(seconds(context_.clock.now() - begun_));
  co_return std::nullopt;
}

Result<void> Exchange::rebuild_rerank(net::Response& response) {
  if (!rerank_) return {};
  SLUICE_TRY(response.body, rerank_answer(*rerank_, response.body, record_.model, record_.id,
                                          context_.clock.unix_nanos() / 1'000'000'000));
  response.headers.set("Content-Type", "application/json");
  for (const char* name : {"content-encoding", "etag", "digest", "content-md5"}) response.headers.remove(name);
  response.trailers.clear();
  return {};
}

net::Task<Exchange::MaybeFailure> Exchange::relay_stream(Upstream& upstream, net::ResponseHead head) {
  Worker& worker = *upstream.worker;
  // The head waits for the first byte of the body: until then the request can go elsewhere.
  auto part = co_await upstream.connection->read_some();
  if (gone_) co_return std::nullopt;
  if (!part.ok()) co_return upstream.failed(std::move(part).error());

  upstream.lease->first_token();
  body_ = {};  // nothing will be sent again
  facts_.routing_text = {};
  const bool good = head.status / 100 == 2;
  const auto type = head.headers.get("content-type");
  const auto length = head.headers.get("content-length");
  // An event of ours has no place in a compressed stream.
  const bool is_events = type && type->starts_with("text/event-stream") && !head.headers.has("content-encoding");
  const bool open_ended = !length;
  net::ResponseHead relayed{head.status, headers_of(head, worker), head.reason};
  if (length) relayed.headers.set("Content-Length", std::string(*length));
  for (const auto& [name, value] : answer_headers_) relayed.headers.add(name, value);
  const TimePoint first_at = context_.clock.now();
  if (good) {
    const double to_first = seconds(first_at - begun_);
    series().duration.observe(to_first);
    series().ttft.observe(to_first);
  }
  end_.status = head.status;
  end_.head_at = first_at;
  phase("first_byte");
  const Duration keepalive =
      is_events && open_ended ? std::chrono::seconds(context_.options.sse_keepalive_secs) : Duration::zero();
  auto sent = co_await client_.start(std::move(relayed));
  Tail tail;
  TimePoint latest = first_at;
  while (sent.ok() && !gone_ && part.ok() && !part->empty()) {
    tail.append(*part);
    record_.answer_bytes += part->size();
    if (!client_.write_now(*part)) {
      const HeldByClient held(*worker.load);
      writing_ = true;
      sent = co_await client_.drain();
      writing_ = false;
      if (!sent.ok() || gone_) break;
    }
    if (keepalive > Duration::zero() && ends_event(tail.text())) co_await keep_alive(upstream, keepalive);
    if (gone_) break;
    part = co_await upstream.connection->read_some();
    if (good && part.ok() && !part->empty()) {
      const TimePoint now = context_.clock.now();
      worker.load->heard(now);
      series().inter_chunk.observe(seconds(now - std::exchange(latest, now)));
    }
  }
  if (!sent.ok() || gone_) {
    gone_ = true;
    worker.series.aborts_client.add();
    co_return std::nullopt;
  }
  if (!part.ok()) {
    const bool whole_events = ends_event(tail.text());
    const Error error = std::move(part).error();
    if (is_events && open_ended && !whole_events) sent = co_await client_.write("\n\n");
    co_await break_off(upstream, error, is_events && open_ended);
    co_return std::nullopt;
  }
  at_work_ = false;
  client_.set_trailers(upstream.connection->trailers());
  upstream.judge(classify(head.status, head.headers));
  if (good) {
    const int64_t tokens = learn(tail.text(), upstream);
    // What came in one piece does not tell.
    if (tokens > 1 && latest > first_at)
      series().tpot.observe(seconds(latest - first_at) / static_cast<double>(tokens - 1));
  }
  upstream.release();
  phase("finished");
  if (good) series().generation.observe(seconds(context_.clock.now() - begun_));
  const auto finished = co_await client_.finish();
  if (!finished.ok()) gone_ = true;
  co_return std::nullopt;
}

// Waits for the worker between two events. One that says nothing for that long is spoken for by a comment, which every
// reader of events skips.
net::Task<> Exchange::keep_alive(Upstream& upstream, Duration after) {
  while (!gone_ && !timed_out_) {
    const bool news = co_await upstream.connection->wait_some(after);
    if (news || gone_ || timed_out_) co_return;
    writing_ = true;
    const auto sent = co_await client_.write(": keep-alive\n\n");
    writing_ = false;
    if (!sent.ok()) gone_ = true;
  }
}

// The worker broke in the middle of a stream. The client must not take what it has for a whole answer: a stream of
// events ends with an error event and no [DONE], anything else with a connection that breaks too.
net::Task<> Exchange::break_off(Upstream& upstream, const Error& error, bool with_event) {
  upstream.worker->series.aborts_worker.add();
  const Failure failure = upstream.failed(error);
  note(failure.error.message);
  record_failure(failure);
  end_.error_code = "stream_error";
  if (!with_event) {
    client_.abort();
    co_return;
  }
  const std::string event = stream_error_event(
      failure.error.code == ErrorCode::kTimeout ? failure.error.message
                                                : fmt::format("the connection to worker {} broke", failure.worker_id));
  const auto written = co_await client_.write(event);
  if (written.ok()) co_await client_.finish();
}

bool Exchange::others_left() {
  const Roster* roster = destination_.roster(context_, loop_);
  return roster != nullptr && any_untried(*roster, tried_, context_.clock.now());
}

std::optional<Duration> Exchange::pause_before_retry(const Failure& failure) {
  record_failure(failure);
  if (timed_out_) return std::nullopt;
  if (attempts_ >= context_.retry.attempts) {
    if (attempts_ > 1) series().retries_exhausted.add();
    return std::nullopt;
  }
  if (failure.worker_id.empty()) {
    if (loop_.fleet(context_.fleet).empty()) return std::nullopt;
    return context_.retry.pause(pauses_++, std::nullopt, loop_.rng);
  }
  const bool others = others_left();
  // A connection that failed has cost the other workers nothing: moving on to one of them needs no budget and no pause.
  const bool broke = failure.error.code == ErrorCode::kRefused || failure.error.code == ErrorCode::kReset;
  if (!failure.answer && broke && others) return Duration::zero();
  if (!context_.retry_budget.spend(context_.clock.now())) return std::nullopt;
  if (failure.outcome == Outcome::kBusy && others) return Duration::zero();
  return context_.retry.pause(pauses_++, failure.retry_after, loop_.rng);
}

net::Task<> Exchange::give_up(Failure failure) {
  const bool too_late = !failure.answer && failure.error.code == ErrorCode::kTimeout;
  if (failure.worker_id.empty() && last_answer_ && !too_late) failure.answer = std::move(last_answer_);
  if (failure.answer) {
    co_await answer(std::move(*failure.answer));
  } else if (too_late) {
    co_await fail(504, "call_upstream_timeout", failure.error.message);
  } else if (failure.worker_id.empty()) {
    co_await fail(503, "no_available_workers", failure.error.message);
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
  const auto sent = co_await client_.respond(std::move(response));
  if (!sent.ok()) gone_ = true;
}

net::Task<> Exchange::fail(int status, std::string_view code, std::string message) {
  end_.error_code = std::string(code);
  if (attempts_ == 0) note(message);
  net::Response response = error_response(status, code, message);
  co_await answer(std::move(response));
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

net::Headers Exchange::headers_of(const net::ResponseHead& head, const Worker& worker) const {
  net::Headers headers = relayed_headers(head.headers, answer_headers_);
  if (context_.options.expose_worker_header) headers.set("x-smg-routed-worker-id", worker.url);
  return headers;
}

int64_t Exchange::learn(std::string_view tail, Upstream& upstream) {
  Worker& worker = *upstream.worker;
  const auto usage = read_usage(tail);
  std::optional<PromptReport> report;
  if (usage && usage->prompt_tokens > 0) {
    const double cached = static_cast<double>(usage->cached_tokens) / static_cast<double>(usage->prompt_tokens);
    report = {.cached_share = std::clamp(cached, 0.0, 1.0),
              .output_tokens = std::clamp<int64_t>(usage->completion_tokens, 1, kMostNewTokens)};
  }
  upstream.lease->answered(report);
  if (!usage) return 0;
  record_.prompt_tokens = usage->prompt_tokens;
  record_.cached_tokens = usage->cached_tokens;
  record_.output_tokens = usage->completion_tokens;
  worker.series.prompt_tokens.add(static_cast<double>(usage->prompt_tokens));
  worker.series.cached_tokens.add(static_cast<double>(usage->cached_tokens));
  series().tokens_in.add(static_cast<double>(usage->prompt_tokens));
  series().tokens_out.add(static_cast<double>(usage->completion_tokens));
  context_.reported.add(usage->cached_tokens, usage->prompt_tokens, context_.clock.now());
  return usage->completion_tokens;
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
