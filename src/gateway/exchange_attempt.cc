// One attempt of an exchange: a worker is chosen and has the request, its answer goes to the client, whole or part by
// part, and what it says of itself is learned.
#include <charconv>

#include "base/log.h"
#include "gateway/control.h"
#include "gateway/error_shape.h"
#include "gateway/exchange.h"
#include "gateway/forward.h"
#include "gateway/tracing.h"

namespace sluice::gateway {
namespace {

constexpr size_t kWholeAnswer = 4 << 20;  // answers of known length up to this are relayed in one write
constexpr int64_t kDefaultNewTokens = 128;
// What a client or a worker may make us believe.
constexpr int64_t kMostNewTokens = 1 << 20;
constexpr int64_t kMostPromptTokens = 1 << 30;
// Of a worker that is busy with nothing of ours and does not say for how long: no answer will tell when it has room. It
// is asked five times a second, which leaves the budget of retries to others and finds room well within a second.
constexpr Duration kBusyPause = std::chrono::milliseconds(200);

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

Usage believable(Usage usage) {
  usage.prompt_tokens = std::min(usage.prompt_tokens, kMostPromptTokens);
  usage.cached_tokens = std::min(usage.cached_tokens, usage.prompt_tokens);
  usage.completion_tokens = std::min(usage.completion_tokens, kMostNewTokens);
  return usage;
}

// Without a limit in the request engines generate as much as their context holds; elsewhere they have a small one.
bool may_be_endless(Endpoint endpoint) {
  return endpoint == Endpoint::kChat || endpoint == Endpoint::kResponses || endpoint == Endpoint::kMessages;
}

bool ends_event(std::string_view stream) { return stream.ends_with("\n\n") || stream.ends_with("\r\n\r\n"); }

}  // namespace

// A lease on a worker, the breaker's permit and the connection. Without a verdict the breaker learns nothing.
struct Exchange::Upstream {
  Upstream(Exchange& of, WorkerPtr which, Breaker::Permit breaker_permit, std::optional<WorkerLease> its_lease)
      : exchange(of),
        worker(std::move(which)),
        permit(breaker_permit),
        sent(of.context_.clock.now()),
        lease(std::move(its_lease)) {}
  ~Upstream() { release(); }

  // The worker has done its part, or is left alone.
  void release() {
    exchange.upstream_ = nullptr;
    connection.reset();
    lease.reset();
    judge(Outcome::kClientGone);
  }

  // The first verdict counts. `status`: of the worker's answer, 0 without one.
  void judge(Outcome outcome, int status = 0) {
    if (std::exchange(judged, true)) return;
    switch (outcome) {
      case Outcome::kOk:
        worker->breaker.success(permit);
        worker->limit.served(exchange.context_.clock.now());
        worker->series.breaker_success.add();
        return;
      case Outcome::kFault:
        worker->breaker.fault(permit);
        worker->series.breaker_failure.add();
        exchange.context_.control->suspect(worker);
        return;
      case Outcome::kClientError:
        // Of a worker that nobody probes trials are all that can close the breaker, and it is up.
        if (permit.trial && status / 100 == 4 && worker->rules().disable_health_check) {
          worker->breaker.success(permit);
        } else {
          worker->breaker.neutral(permit);
        }
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
    exchange.withdraw_claim();
    error.message = by_id(std::move(error.message), *worker);
    if (error.code == ErrorCode::kExhausted) {  // of what this process lacks the worker knows nothing
      SLUICE_LOG_EVERY(10, error, "gateway/exchange", "{}", error.message);
      release();
      return failure_of(std::move(error));
    }
    (error.code == ErrorCode::kTimeout ? worker->series.timeouts : worker->series.backend_errors).add();
    judge(Outcome::kFault);
    release();
    return failure_of(std::move(error));
  }
  Failure failure_of(Error error) const {
    Failure failure;
    failure.error = std::move(error);
    failure.worker_id = worker->id;
    return failure;
  }

  Exchange& exchange;
  const WorkerPtr worker;
  const Breaker::Permit permit;
  const TimePoint sent;
  std::optional<WorkerLease> lease;
  bool judged = false;
  std::unique_ptr<net::ClientExchange> connection;
};

Exchange::Failure Exchange::failure_with(net::Response answer, Outcome outcome, std::optional<Duration> retry_after,
                                         const Worker& worker) {
  Failure failure;
  failure.answer = std::move(answer);
  failure.outcome = outcome;
  failure.retry_after = retry_after;
  failure.worker_id = worker.id;
  return failure;
}

Work Exchange::work(double matched_share) const {
  return {.prompt_tokens = prompt_tokens_,
          .new_tokens = std::min(facts_.max_tokens.value_or(kDefaultNewTokens), kMostNewTokens),
          .prompt_bytes = record_.prompt_bytes,
          .matched_share = matched_share,
          .streams = facts_.stream,
          .open = !facts_.max_tokens && may_be_endless(endpoint_)};
}

net::Task<Exchange::MaybeFailure> Exchange::attempt() {
  Breaker::Permit permit;
  std::optional<WorkerLease> lease;
  const WorkerPtr worker = choose(permit, lease);
  if (worker == nullptr) {
    count_request();
    co_return no_worker();
  }
  if (record_.model.empty()) record_.model = loop_.model_of(*worker);
  count_request();
  const auto& options = context_.options;
  const net::ClientTimeouts timeouts{
      .connect = std::chrono::seconds(options.connect_timeout_secs),
      .head = std::chrono::seconds(options.response_head_timeout_secs.value_or(options.request_timeout_secs)),
      .silence = std::chrono::seconds(options.stream_idle_timeout_secs.value_or(options.request_timeout_secs))};
  Upstream upstream(*this, worker, permit, std::move(lease));
  asked_ = worker;
  at_work_ = true;
  const BodyChanges changes = destination_.changes_for(*worker);
  const std::string changed = changes.any() ? changed_body(*body_, facts_, changes) : std::string();
  // Twice at most: a kept-alive connection may have been closed by the worker just before the request reached it.
  for (bool replayed = false;; replayed = true) {
    net::RequestHead head = upstream_head(client_.request(), *worker, !body_->empty(), context_.gatekeeper);
    if (record_.trace) pass_on(record_, head.headers);
    std::function<void(net::ClientExchange&)> on_exchange = [this](net::ClientExchange& exchange) {
      upstream_ = &exchange;
    };
    auto sent = co_await loop_.client.send(worker->address, std::move(head), changes.any() ? changed : *body_, timeouts,
                                           std::move(on_exchange));
    if (!sent.ok()) {
      upstream_ = nullptr;
      if (gone_) co_return std::nullopt;
      Failure failure = upstream.failed(std::move(sent).error());
      failure.reached = replayed;  // on the connection before this one
      co_return failure;
    }
    upstream.connection = std::move(sent).value();
    upstream_ = upstream.connection.get();
    if (upstream.connection->sent()) phase("sent");
    auto answered = co_await upstream.connection->read_head();
    if (gone_) co_return std::nullopt;
    if (answered.ok()) {
      net::ResponseHead answer_head = std::move(answered).value();
      if (note_head(upstream, answer_head)) co_return co_await relay_whole(upstream, std::move(answer_head));
      co_return co_await relay_stream(upstream, std::move(answer_head));
    }
    const bool was_dead =
        answered.error().code == ErrorCode::kReset && upstream.connection->reused() && !upstream.connection->answered();
    if (!was_dead || replayed) co_return upstream.failed(std::move(answered).error());
    upstream_ = nullptr;
    upstream.connection.reset();
    loop_.client.forget(worker->address);  // what else is kept has been idle for longer: the next one is fresh
  }
}

// What the head of an answer tells. True if the answer is to be taken whole before any of it goes on.
bool Exchange::note_head(Upstream& upstream, const net::ResponseHead& head) {
  upstream.lease->expect_end();
  const auto name = head.headers.get(ProcessMark::kHeader);
  if (name && upstream.worker->process.changes_to(*name, context_.clock.now())) {
    context_.control->restarted(upstream.worker);
  }
  loop_.count_upstream_response(head.status);
  const auto length = content_length(head.headers);
  // An answer that may lead to another attempt is looked at whole, and so is one that is rebuilt.
  return is_retryable(head.status) || rerank_ || (length && *length <= kWholeAnswer);
}

// It is busy, and its answer has been taken.
void Exchange::leave_alone(Worker& worker, TimePoint sent, std::optional<Duration> retry_after) {
  const TimePoint now = context_.clock.now();
  const int64_t others = worker.load->requests.load(std::memory_order_relaxed);
  worker.limit.busy(sent, now, others);
  context_.some_busy.store(true, std::memory_order_relaxed);
  const int64_t until = (now + retry_after.value_or(kBusyPause)).time_since_epoch().count();
  if (retry_after || (others == 0 && worker.busy_until < until)) worker.busy_until = until;
}

net::Task<Exchange::MaybeFailure> Exchange::relay_whole(Upstream& upstream, net::ResponseHead head) {
  Worker& worker = *upstream.worker;
  auto body = co_await upstream.connection->read_all();
  if (gone_) co_return std::nullopt;
  if (!body.ok()) co_return upstream.failed(std::move(body).error());

  at_work_ = false;
  const EndedRanks ended = head.status / 100 == 5 ? ended_ranks(*body) : EndedRanks::kNone;
  const Outcome outcome = classify(head.status, head.headers, *body, ended);
  net::Response response{head.status, headers_of(head, worker), std::move(body).value(), head.reason,
                         upstream.connection->trailers()};
  upstream.judge(outcome, head.status);
  if (head.status == 401 && !worker.api_key().empty()) {
    SLUICE_LOG_EVERY(60, warn, "gateway/exchange",
                     "worker {} answered 401: it does not take the key that the gateway has of it; PATCH /workers/{} "
                     "changes that",
                     worker.url, worker.id);
  }
  if (head.status / 100 == 2) {
    learn(response.body, upstream);
  } else {
    worker.load->heard(context_.clock.now());
    withdraw_claim();
  }
  upstream.release();
  if (is_retryable(head.status) && ended != EndedRanks::kTwo) {
    const auto comes_back = retry_after(head.headers);
    if (outcome == Outcome::kBusy) {
      leave_alone(worker, upstream.sent, comes_back);
    } else {
      (error_type(head.status) == "timeout" ? worker.series.timeouts : worker.series.backend_errors).add();
    }
    Failure failure = failure_with(std::move(response), outcome, comes_back, worker);
    failure.rank_ended = ended == EndedRanks::kOne;
    co_return failure;
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

  const bool good = head.status / 100 == 2;
  // A whole answer may come like a stream, and tells as little of its first token as any.
  const bool streams = good && facts_.stream;
  if (streams) {
    upstream.lease->first_token();
  } else {
    worker.load->heard(context_.clock.now());
  }
  if (!good) withdraw_claim();
  claim_.reset();
  facts_.routing_text.clear();
  body_ = nullptr;  // nothing will be sent again
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
    if (streams) series().ttft.observe(to_first);
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
      with_client_ = true;
      sent = co_await client_.drain();
      with_client_ = false;
      if (!sent.ok() || gone_) break;
    }
    if (keepalive > Duration::zero() && ends_event(tail.text())) {
      const bool news = co_await upstream.connection->wait_some(keepalive);
      if (!news) co_await keep_alive(upstream, keepalive);
    }
    if (gone_) break;
    // Not `?:`, of whose branch that waits GCC 12 destroys the result too early.
    if (auto here = upstream.connection->read_now()) {
      part = *std::move(here);
    } else {
      part = co_await upstream.connection->read_some();
    }
    if (good && part.ok() && !part->empty()) {
      const TimePoint now = context_.clock.now();
      worker.load->heard(now);
      if (streams) series().inter_chunk.observe(seconds(now - std::exchange(latest, now)));
    }
  }
  if (!sent.ok() || gone_) {
    gone_ = true;
    (timed_out_ ? worker.series.aborts_gateway : worker.series.aborts_client).add();
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
  upstream.judge(classify(head.status, head.headers), head.status);
  if (good) {
    const int64_t tokens = learn(tail.text(), upstream);
    // What came in one piece does not tell.
    if (tokens > 1 && latest > first_at)
      series().tpot.observe(seconds(latest - first_at) / static_cast<double>(tokens - 1));
  }
  upstream.release();
  phase("finished");
  if (good) series().generation.observe(seconds(context_.clock.now() - begun_));
  with_client_ = true;
  const auto finished = co_await client_.finish();
  with_client_ = false;
  if (!finished.ok()) gone_ = true;
  co_return std::nullopt;
}

// The worker has said nothing for that long between two events: it is spoken for by comments, which every reader of
// events skips.
net::Task<> Exchange::keep_alive(Upstream& upstream, Duration after) {
  while (!gone_ && !timed_out_) {
    {
      const HeldByClient held(*upstream.worker->load);
      with_client_ = true;
      const auto sent = co_await client_.write(": keep-alive\n\n");
      with_client_ = false;
      if (!sent.ok()) gone_ = true;
    }
    if (gone_ || timed_out_) co_return;
    const bool news = co_await upstream.connection->wait_some(after);
    if (news) co_return;
  }
}

// The worker broke in the middle of a stream, or the time of the request in all is over. The client must not take what
// it has for a whole answer: a stream of events ends with an error event and no [DONE], anything else with a connection
// that breaks too.
net::Task<> Exchange::break_off(Upstream& upstream, const Error& error, bool with_event) {
  WorkerSeries& series = upstream.worker->series;
  (timed_out_ ? series.aborts_gateway : series.aborts_worker).add();
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

net::Headers Exchange::headers_of(const net::ResponseHead& head, const Worker& worker) const {
  net::Headers headers = relayed_headers(head.headers, answer_headers_);
  if (context_.options.expose_worker_header) headers.set("x-smg-routed-worker-id", worker.url);
  return headers;
}

int64_t Exchange::learn(std::string_view tail, Upstream& upstream) {
  Worker& worker = *upstream.worker;
  count_prediction(worker);
  auto usage = read_usage(tail);
  if (usage) *usage = believable(*usage);
  std::optional<PromptReport> report;
  if (usage && usage->prompt_tokens > 0) {
    report = {.prompt_tokens = usage->prompt_tokens,
              .cached_share = static_cast<double>(usage->cached_tokens) / static_cast<double>(usage->prompt_tokens),
              .output_tokens = std::max<int64_t>(usage->completion_tokens, 1)};
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
  // Of what goes on from a stored response nothing was predicted, and the two rates are held against each other.
  if (facts_.previous.empty()) count_reported(usage->cached_tokens, usage->prompt_tokens);
  return usage->completion_tokens;
}

}  // namespace sluice::gateway
