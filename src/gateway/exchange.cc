#include "gateway/exchange.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <charconv>

#include "gateway/control.h"
#include "gateway/error_shape.h"

namespace sluice::gateway {
namespace {

constexpr size_t kWholeAnswer = 4 << 20;  // answers of known length up to this are relayed in one write
constexpr size_t kTail = 4096;            // of an answer, in which usage is looked for
constexpr int64_t kDefaultNewTokens = 128;

// The number after the last "key": in the text.
std::optional<int64_t> last_number(std::string_view text, std::string_view key) {
  const size_t at = text.rfind(key);
  if (at == std::string_view::npos) return std::nullopt;
  size_t begin = at + key.size();
  while (begin < text.size() && text[begin] == ' ') ++begin;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  return value;
}

bool is_forwarded(std::string_view name) {
  constexpr std::string_view kForwarded[] = {"x-request-id",      "x-correlation-id", "traceparent", "tracestate",
                                             "x-smg-routing-key", "content-type",     "accept"};
  for (const auto forwarded : kForwarded) {
    if (net::iequals(name, forwarded)) return true;
  }
  constexpr std::string_view kPrefix = "x-request-id-";
  return name.size() > kPrefix.size() && net::iequals(name.substr(0, kPrefix.size()), kPrefix);
}

std::string_view error_type(int status) {
  switch (status) {
    case 400:
      return "validation_error";
    case 404:
      return "no_workers";
    case 408:
    case 504:
      return "timeout";
    default:
      return status >= 500 ? "backend_error" : "internal_error";
  }
}

}  // namespace

// What an attempt holds: a lease, the breaker's permit, the connection. Without a verdict the breaker learns nothing.
struct Exchange::Upstream {
  Upstream(Exchange& of, WorkerPtr which, Breaker::Permit breaker_permit, int64_t tokens)
      : exchange(of), worker(std::move(which)), permit(breaker_permit), lease(worker->load, tokens) {}
  ~Upstream() {
    exchange.upstream_ = nullptr;
    if (!judged) worker->breaker.neutral(permit);
  }

  void judge(Outcome outcome) {
    if (std::exchange(judged, true)) return;
    if (outcome == Outcome::kFault) {
      worker->breaker.fault(permit);
      worker->series.breaker_failure.add();
      exchange.context_.control->suspect(worker);
    } else if (outcome == Outcome::kOk || outcome == Outcome::kClientError) {
      worker->breaker.success(permit);
      worker->series.breaker_success.add();
    } else {
      worker->breaker.neutral(permit);
    }
  }

  Exchange& exchange;
  const WorkerPtr worker;
  const Breaker::Permit permit;
  bool judged = false;
  WorkerLease lease;
  std::unique_ptr<net::ClientExchange> connection;
};

Exchange::Exchange(Context& context, LoopState& loop, net::ServerExchange& client, Endpoint endpoint,
                   std::string_view route, std::string id, const net::Headers& answer_headers)
    : context_(context),
      loop_(loop),
      client_(client),
      endpoint_(endpoint),
      route_(route),
      answer_headers_(answer_headers),
      begun_(context.clock.now()),
      timer_(loop.loop.executor()) {
  record_.id = std::move(id);
  record_.route = route_;
  record_.started_unix_nanos = context_.clock.unix_nanos();
}

net::Task<Exchange::End> Exchange::run() {
  std::function<void()> on_gone = [this] {
    gone_ = true;
    if (upstream_ != nullptr) upstream_->close();
    timer_.cancel();
  };
  client_.on_client_gone(std::move(on_gone));
  co_await serve();
  std::function<void()> nothing;
  client_.on_client_gone(std::move(nothing));
  settle();
  co_return end_;
}

net::Task<> Exchange::serve() {
  Admission::Slot slot;
  const bool admitted = co_await admit(slot);
  if (!admitted) co_return;

  auto body = co_await client_.read_body(static_cast<size_t>(context_.options.max_payload_size));
  if (!body.ok()) {
    switch (body.error().code) {
      case ErrorCode::kTooLarge:
        co_await fail(413, "request_body_too_large", body.error().message);
        co_return;
      case ErrorCode::kTimeout:
        co_await fail(408, "request_body_timeout", body.error().message);
        co_return;
      case ErrorCode::kProtocol:
        co_await fail(400, "bad_request", body.error().message);
        co_return;
      default:
        gone_ = true;
        co_return;
    }
  }
  body_ = std::move(body).value();
  auto facts = scan_body(body_, endpoint_);
  if (!facts.ok()) {
    co_await fail(400, "json_parse_error", facts.error().message);
    co_return;
  }
  facts_ = std::move(facts).value();
  phase("read");

  context_.retry_budget.earn();
  int64_t pauses = 0;
  while (!gone_) {
    ++attempts_;
    may_retry_ = attempts_ < context_.retry.attempts;
    Next next = Next::kAgain;
    WorkerPtr worker = choose();
    if (worker != nullptr) {
      last_worker_ = worker;
      tried_.push_back(worker->number);
      next = co_await attempt(worker, may_retry_);
      if (next == Next::kDone || gone_) co_return;
    } else if (!may_retry_ || loop_.fleet(context_.fleet).empty()) {
      if (last_answer_) {
        net::Response last = std::move(*last_answer_);
        co_await answer(std::move(last));
      } else {
        co_await fail(503, "no_available_workers", "no worker can take the request now");
      }
      co_return;
    }
    loop_.count(context_.metrics, "smg_worker_retries_total", {"regular", std::string(to_string(endpoint_))}).add();
    if (next == Next::kAgain) co_await sleep(context_.retry.pause(pauses++, retry_after_, loop_.rng));
  }
}

net::Task<bool> Exchange::admit(Admission::Slot& slot) {
  auto waiter = std::make_shared<Admission::Waiter>();
  // The slot may be given by another loop, and after this exchange has ended: the timer is shared.
  auto timer = std::make_shared<net::Timer>(loop_.loop.executor());
  net::EventLoop& loop = loop_.loop;
  waiter->wake = [timer, &loop] { loop.post([timer] { timer->cancel(); }); };
  const auto decided = [&](const char* result) {
    loop_.count(context_.metrics, "smg_http_rate_limit_total", {result}).add();
  };
  switch (context_.admission.enter(waiter)) {
    case Admission::Entry::kAdmitted:
      break;
    case Admission::Entry::kFull: {
      decided("rejected");
      auto response = error_response(429, "admission_queue_full", "the queue is full");
      response.headers.set("Retry-After", std::to_string(context_.admission.retry_after_seconds(context_.clock.now())));
      end_.error_code = "admission_queue_full";
      co_await answer(std::move(response));
      co_return false;
    }
    case Admission::Entry::kQueued: {
      const TimePoint until = context_.clock.now() + std::chrono::seconds(context_.options.queue_timeout_secs);
      timer->expires_at(until);
      boost::system::error_code woken;
      // A client that leaves is taken out of the queue at once.
      std::function<void()> on_gone = [this, timer] {
        gone_ = true;
        timer->cancel();
      };
      client_.on_client_gone(std::move(on_gone));
      if (!gone_) co_await timer->async_wait(net::asio::redirect_error(net::use_task, woken));
      std::function<void()> as_before = [this] {
        gone_ = true;
        if (upstream_ != nullptr) upstream_->close();
        timer_.cancel();
      };
      const bool granted = context_.admission.leave(waiter);
      client_.on_client_gone(std::move(as_before));
      if (granted) break;
      decided("rejected");
      if (gone_) co_return false;
      auto response = error_response(408, "admission_queue_timeout", "the request waited too long for its turn");
      response.headers.set("Retry-After", std::to_string(context_.admission.retry_after_seconds(context_.clock.now())));
      end_.error_code = "admission_queue_timeout";
      co_await answer(std::move(response));
      co_return false;
    }
  }
  slot = Admission::Slot(&context_.admission);
  decided("allowed");
  phase("admitted");
  co_return !gone_;
}

WorkerPtr Exchange::choose() {
  const WorkerList& workers = loop_.fleet(context_.fleet);
  const TimePoint now = context_.clock.now();
  auto& usable = loop_.candidates;
  // Workers that were not tried come first, and among them those that did not ask to be left alone.
  for (const int effort : {0, 1, 2}) {
    usable.clear();
    for (const WorkerPtr& worker : workers) {
      if (!worker->usable() || (effort < 1 && worker->is_busy(now))) continue;
      if (effort < 2 && std::find(tried_.begin(), tried_.end(), worker->number) != tried_.end()) continue;
      usable.push_back({worker->number, worker->load.get()});
    }
    if (!usable.empty()) break;
  }
  RequestFacts facts{.routing_text = facts_.routing_text, .prefix = {}};
  if (context_.policy->needs_prefix()) facts.prefix = context_.index.match(facts_.routing_text);
  choice_ = context_.policy->choose(FleetView(usable), facts, loop_.rng);
  if (!choice_.worker) return nullptr;
  const auto at = std::ranges::lower_bound(workers, *choice_.worker, {}, [](const auto& w) { return w->number; });
  WorkerPtr worker = *at;
  if (choice_.insert_prefix) context_.index.insert(facts_.routing_text, worker->number);
  if (context_.policy->needs_prefix() && !facts_.routing_text.empty()) {
    const auto total = static_cast<int64_t>(facts_.routing_text.size());
    context_.predicted.add(static_cast<int64_t>(choice_.match_rate * static_cast<double>(total)), total, now);
  }
  const std::string reason(to_string(choice_.reason));
  auto [selection, is_new] = loop_.selections.try_emplace({reason, worker->number});
  if (is_new) {
    selection->second =
        context_.metrics.counter("smg_worker_selections_total", {worker->url, context_.options.policy, reason});
  }
  selection->second.add();
  record_.detail = reason;
  for (int i = 0; i < choice_.num_scores; ++i) {
    record_.detail += fmt::format(" {}:{:.6g}", choice_.scores[i].worker, choice_.scores[i].cost);
  }
  phase("chosen");
  return worker;
}

net::RequestHead Exchange::upstream_head(const Worker& worker) const {
  net::RequestHead head;
  head.method = client_.request().method;
  head.target = client_.request().target;
  bool has_type = false;
  for (const auto& [name, value] : client_.request().headers) {
    if (!is_forwarded(name) && !(worker.api_key.empty() && net::iequals(name, "authorization"))) continue;
    has_type = has_type || net::iequals(name, "content-type");
    head.headers.add(name, value);
  }
  if (!has_type && !body_.empty()) head.headers.add("Content-Type", "application/json");
  if (!worker.api_key.empty()) head.headers.add("Authorization", "Bearer " + worker.api_key);
  return head;
}

net::Headers Exchange::relayed_headers(const net::Headers& headers, const Worker& worker) const {
  net::Headers relayed;
  for (const auto& [name, value] : headers) {
    if (net::is_hop_by_hop(name) || net::iequals(name, "content-length") || answer_headers_.has(name)) continue;
    relayed.add(name, value);
  }
  if (context_.options.expose_worker_header) relayed.set("x-smg-routed-worker-id", worker.url);
  return relayed;
}

net::Task<Exchange::Next> Exchange::attempt(WorkerPtr worker, bool may_retry) {
  Breaker::Permit permit;
  if (!worker->breaker.begin(permit)) co_return Next::kElsewhere;  // its trial went to another request
  if (model_.empty()) {
    model_ = worker->info().model_id;
    series().requests.add();
  }
  const int64_t prompt_tokens = static_cast<int64_t>(facts_.routing_text.size() / 4) + 1;
  const auto& options = context_.options;
  const net::ClientTimeouts timeouts{
      .connect = std::chrono::seconds(options.connect_timeout_secs),
      .head = std::chrono::seconds(options.response_head_timeout_secs.value_or(options.request_timeout_secs)),
      .silence = std::chrono::seconds(options.stream_idle_timeout_secs.value_or(options.request_timeout_secs))};
  Upstream upstream(*this, worker, permit, prompt_tokens + facts_.max_tokens.value_or(kDefaultNewTokens));
  // Twice at most: a kept-alive connection may have been closed by the worker just before the request reached it.
  for (bool replayed = false;; replayed = true) {
    worker->series.requests.add();
    net::RequestHead head = upstream_head(*worker);
    bool reused = false, answered = false;
    std::function<void(net::ClientExchange&)> on_exchange = [this](net::ClientExchange& exchange) {
      upstream_ = &exchange;
    };
    auto sent = co_await loop_.client.send(worker->address, std::move(head), body_, timeouts, std::move(on_exchange));
    if (!sent.ok()) {
      upstream_ = nullptr;
      co_return co_await failed(upstream, sent.error(), may_retry);
    }
    upstream.connection = std::move(sent).value();
    upstream_ = upstream.connection.get();
    if (!replayed) phase("sent");
    auto answered_head = co_await upstream.connection->read_head();
    reused = upstream.connection->reused();
    answered = upstream.connection->answered();
    if (!answered_head.ok()) {
      const bool dead_connection = answered_head.error().code == ErrorCode::kReset && reused && !answered;
      upstream_ = nullptr;
      upstream.connection.reset();
      if (dead_connection && !replayed && !gone_) continue;
      co_return co_await failed(upstream, answered_head.error(), may_retry);
    }
    co_return co_await relay(upstream, std::move(answered_head).value());
  }
}

// Nothing of an answer has been relayed.
net::Task<Exchange::Next> Exchange::failed(Upstream& upstream, Error error, bool may_retry) {
  if (gone_) co_return Next::kDone;
  upstream.judge(Outcome::kFault);
  record_.detail += fmt::format("; attempt {}: {}", attempts_, error.message);
  if (may_retry && context_.retry_budget.spend(context_.clock.now())) {
    const bool others = loop_.fleet(context_.fleet).size() > tried_.size();
    co_return error.code == ErrorCode::kRefused&& others ? Next::kElsewhere : Next::kAgain;
  }
  if (attempts_ > 1) {
    loop_.count(context_.metrics, "smg_worker_retries_exhausted_total", {"regular", std::string(to_string(endpoint_))})
        .add();
  }
  if (error.code == ErrorCode::kTimeout) {
    co_await fail(504, "call_upstream_timeout", fmt::format("worker {} did not answer in time", upstream.worker->id));
  } else {
    co_await fail(502, "call_upstream_connection_failed",
                  fmt::format("the connection to worker {} failed", upstream.worker->id));
  }
  co_return Next::kDone;
}

net::Task<Exchange::Next> Exchange::relay(Upstream& upstream, net::ResponseHead head) {
  Worker& worker = *upstream.worker;
  const Outcome outcome = classify(head);
  loop_.count(context_.metrics, "smg_router_upstream_responses_total", {"http", std::to_string(head.status), ""}).add();
  if (outcome == Outcome::kBusy) {
    retry_after_ = retry_after(head.headers).value_or(std::chrono::seconds(1));
    worker.busy_until = (context_.clock.now() + *retry_after_).time_since_epoch().count();
  }
  const auto length = head.headers.get("content-length");
  size_t known = SIZE_MAX;
  if (length) std::from_chars(length->data(), length->data() + length->size(), known);
  const bool retryable = is_retryable(head.status);
  if (head.status == 200 && known > kWholeAnswer) co_return co_await relay_stream(upstream, std::move(head));
  if (known > kWholeAnswer && !retryable) co_return co_await relay_stream(upstream, std::move(head));

  auto whole = co_await upstream.connection->read_all();
  if (gone_) co_return Next::kDone;
  if (!whole.ok()) {
    upstream_ = nullptr;
    upstream.connection.reset();
    co_return co_await failed(upstream, whole.error(), may_retry_);
  }
  upstream.judge(outcome);
  net::Response response{head.status, relayed_headers(head.headers, worker), std::move(whole).value()};
  if (retryable && may_retry_ && context_.retry_budget.spend(context_.clock.now())) {
    last_answer_ = std::move(response);
    co_return Next::kAgain;
  }
  if (head.status == 200) {
    series().duration.observe(seconds(context_.clock.now() - begun_));
    const std::string_view text = response.body;
    learn_usage(text.size() > kTail ? text.substr(text.size() - kTail) : text, worker);
  }
  phase("answered");
  co_await answer(std::move(response));
  if (head.status == 200 && !gone_) series().generation.observe(seconds(context_.clock.now() - begun_));
  co_return Next::kDone;
}

net::Task<Exchange::Next> Exchange::relay_stream(Upstream& upstream, net::ResponseHead head) {
  Worker& worker = *upstream.worker;
  // The head waits for the first byte of the body: until then the request can go elsewhere.
  auto part = co_await upstream.connection->read_some();
  if (gone_) co_return Next::kDone;
  if (!part.ok()) {
    upstream_ = nullptr;
    upstream.connection.reset();
    co_return co_await failed(upstream, part.error(), may_retry_);
  }
  const auto type = head.headers.get("content-type");
  const bool events = type && type->starts_with("text/event-stream");
  const auto length = head.headers.get("content-length");
  net::ResponseHead relayed{head.status, relayed_headers(head.headers, worker)};
  if (length) relayed.headers.set("Content-Length", std::string(*length));
  for (const auto& [name, value] : answer_headers_) relayed.headers.add(name, value);
  upstream.lease.progress(static_cast<int64_t>(facts_.routing_text.size() / 4) + 1);  // the prompt is done
  const Duration to_first = context_.clock.now() - begun_;
  end_.status = head.status;
  auto sent = co_await client_.start(std::move(relayed));
  phase("first_byte");
  if (head.status == 200) {
    series().duration.observe(seconds(to_first));
    series().ttft.observe(seconds(to_first));
  }
  std::string tail;
  while (sent.ok() && !gone_ && part.ok() && !part->empty()) {
    tail.append(*part);
    if (tail.size() > 2 * kTail) tail.erase(0, tail.size() - kTail);
    sent = co_await client_.write(*part);
    if (sent.ok() && !gone_) part = co_await upstream.connection->read_some();
  }
  upstream_ = nullptr;
  if (!sent.ok() || gone_) {
    gone_ = true;
    worker.series.aborts_client.add();
    upstream.connection.reset();
    co_return Next::kDone;
  }
  if (!part.ok()) {
    upstream.judge(Outcome::kFault);
    worker.series.aborts_worker.add();
    upstream.connection.reset();
    record_.detail += "; stream: " + part.error().message;
    end_.error_code = "stream_error";
    if (events) {
      std::string event = tail.ends_with("\n\n") ? "" : "\n\n";
      event += stream_error_event(fmt::format("the connection to worker {} broke", worker.id));
      co_await client_.write(event);
      co_await client_.finish();
    } else {
      client_.abort();
    }
    co_return Next::kDone;
  }
  upstream.judge(classify(head));
  learn_usage(tail, worker);
  const auto finished = co_await client_.finish();
  if (!finished.ok()) gone_ = true;
  phase("finished");
  if (head.status == 200) series().generation.observe(seconds(context_.clock.now() - begun_));
  co_return Next::kDone;
}

void Exchange::learn_usage(std::string_view tail, Worker& worker) {
  const auto prompt = last_number(tail, "\"prompt_tokens\":");
  if (!prompt) return;
  const int64_t cached = last_number(tail, "\"cached_tokens\":").value_or(0);
  const int64_t completion = last_number(tail, "\"completion_tokens\":").value_or(0);
  worker.series.prompt_tokens.add(static_cast<double>(*prompt));
  worker.series.cached_tokens.add(static_cast<double>(cached));
  series().tokens_in.add(static_cast<double>(*prompt));
  series().tokens_out.add(static_cast<double>(completion));
  context_.reported.add(cached, *prompt, context_.clock.now());
}

RequestSeries& Exchange::series() {
  const std::string& model = model_.empty() ? std::string("unknown") : model_;
  auto [at, is_new] = loop_.series.try_emplace({model, static_cast<int>(endpoint_) * 2 + facts_.stream});
  RequestSeries& series = at->second;
  if (is_new) {
    const std::string endpoint(to_string(endpoint_));
    auto& metrics = context_.metrics;
    const char* streaming = facts_.stream ? "true" : "false";
    series.requests =
        metrics.counter("smg_router_requests_total", {"http", "regular", "http", model, endpoint, streaming});
    series.duration =
        metrics.histogram("smg_router_request_duration_seconds", {"http", "regular", "http", model, endpoint});
    series.ttft = metrics.histogram("smg_router_ttft_seconds", {"http", "regular", model, endpoint});
    series.generation =
        metrics.histogram("smg_router_generation_duration_seconds", {"http", "regular", model, endpoint});
    series.tokens_in = metrics.counter("smg_router_tokens_total", {"http", "regular", model, endpoint, "input"});
    series.tokens_out = metrics.counter("smg_router_tokens_total", {"http", "regular", model, endpoint, "output"});
  }
  return series;
}

net::Task<> Exchange::sleep(Duration duration) {
  if (gone_) co_return;
  timer_.expires_after(duration);
  boost::system::error_code woken;
  co_await timer_.async_wait(net::asio::redirect_error(net::use_task, woken));
}

net::Task<> Exchange::answer(net::Response response) {
  if (gone_) co_return;
  for (const auto& [name, value] : answer_headers_) response.headers.add(name, value);
  end_.status = response.status;
  const auto sent = co_await client_.respond(std::move(response));
  if (!sent.ok()) gone_ = true;
}

net::Task<> Exchange::fail(int status, std::string_view code, std::string message) {
  end_.error_code = std::string(code);
  record_.detail += (record_.detail.empty() ? "" : "; ") + message;
  net::Response response = error_response(status, code, message);
  co_await answer(std::move(response));
}

void Exchange::settle() {
  if (end_.status >= 300 || (end_.status == 0 && !gone_)) {
    loop_
        .count(context_.metrics, "smg_router_request_errors_total",
               {"http", "regular", "http", model_.empty() ? "unknown" : model_, std::string(to_string(endpoint_)),
                std::string(error_type(end_.status))})
        .add();
  }
  record_.model = model_;
  record_.worker = last_worker_ ? last_worker_->url : "";
  record_.attempts = static_cast<int>(attempts_);
  record_.status = end_.status;
  Outcome outcome = Outcome::kOk;
  if (gone_) {
    outcome = Outcome::kClientGone;
  } else if (!end_.error_code.empty() && end_.status < 400) {
    outcome = Outcome::kFault;  // a stream that broke
  } else {
    outcome = classify({.status = end_.status, .headers = {}});
  }
  record_.outcome = std::string(to_string(outcome));
  context_.journal.add(std::move(record_));
}

}  // namespace sluice::gateway
