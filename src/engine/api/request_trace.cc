#include "engine/api/request_trace.h"

#include <algorithm>

#include "obs/trace_exporter.h"

namespace sluice::engine {

Tracer::Tracer(std::shared_ptr<obs::TraceExporter> exporter, const Clock& clock, int64_t level)
    : exporter_(std::move(exporter)), clock_(clock), level_(level), rng_(random_seed()) {}

obs::SpanId Tracer::new_span_id() {
  const std::lock_guard lock(mu_);
  return obs::span_id_of(rng_.next());
}

std::shared_ptr<RequestTrace> Tracer::begin(const net::RequestHead& head, std::string_view route) {
  const int64_t level = level_;
  if (!enabled() || level == kOff) return nullptr;
  const auto parent = obs::parent_of(head.headers);
  if (parent && !parent->sampled) return nullptr;
  obs::Span root;
  if (parent) {
    root.trace_id = parent->trace_id;
    root.parent = parent->span_id;
  } else {
    const std::lock_guard lock(mu_);
    const uint64_t high = rng_.next();
    root.trace_id = obs::trace_id_of(high, rng_.next());
  }
  root.id = new_span_id();
  root.name = fmt::format("{} {}", head.method, route);
  root.kind = obs::Span::Kind::kServer;
  root.begin_unix_nanos = clock_.unix_nanos();
  root.attributes = {{"http.request.method", head.method}, {"http.route", std::string(route)}};
  if (const auto operation = obs::operation_of(route); !operation.empty()) {
    root.attributes.push_back({"gen_ai.operation.name", std::string(operation)});
  }
  return std::make_shared<RequestTrace>(*this, std::move(root), level);
}

RequestTrace::RequestTrace(Tracer& tracer, obs::Span root, int64_t level) : tracer_(tracer), level_(level) {
  spans_.push_back(std::move(root));
}

RequestTrace::~RequestTrace() {
  spans_.front().end_unix_nanos = tracer_.clock_.unix_nanos();
  if (samples_ > 0) spans_.front().attributes.push_back({"sluice.samples", static_cast<int64_t>(samples_)});
  tracer_.exporter_->add(std::move(spans_));
}

obs::Span& RequestTrace::stage(std::string_view name, int64_t begin, int64_t end) {
  obs::Span span;
  span.trace_id = spans_.front().trace_id;
  span.parent = spans_.front().id;
  span.id = tracer_.new_span_id();
  span.name = name;
  span.begin_unix_nanos = begin;
  span.end_unix_nanos = std::max(begin, end);  // clocks of two hosts differ
  return spans_.emplace_back(std::move(span));
}

void RequestTrace::body_read() {
  body_at_ = tracer_.clock_.unix_nanos();
  if (level_ >= Tracer::kStages) stage("read", spans_.front().begin_unix_nanos, body_at_);
}

void RequestTrace::submitted() {
  submitted_at_ = tracer_.clock_.unix_nanos();
  if (level_ >= Tracer::kStages) stage("tokenize", body_at_, submitted_at_);
}

void RequestTrace::sample_ended(size_t index, const RequestOutput& end) {
  ++samples_;
  const bool wanted = level_ >= Tracer::kSamples ? index < kMostSamples : level_ >= Tracer::kStages && index == 0;
  if (!wanted) return;
  const int64_t now = tracer_.clock_.unix_nanos();
  const RequestTimes& times = end.times;
  const bool begun = times.begun_unix_nanos != 0, prefilled = times.prefilled_unix_nanos != 0;
  const auto of_sample = [&](std::string_view name, int64_t from, int64_t to) -> obs::Span& {
    obs::Span& span = stage(name, from, to);
    span.attributes = {{"sluice.rank", end.dp_rank}, {"sluice.sample", static_cast<int64_t>(index)}};
    return span;
  };
  const int64_t arrived = begun ? times.begun_unix_nanos - static_cast<int64_t>(times.queue * 1e9) : submitted_at_;
  of_sample("queue", arrived, begun ? times.begun_unix_nanos : now);
  if (begun) {
    obs::Span& prefill = of_sample("prefill", times.begun_unix_nanos, prefilled ? times.prefilled_unix_nanos : now);
    prefill.attributes.push_back({"gen_ai.usage.input_tokens", end.prompt_tokens});
    prefill.attributes.push_back({"sluice.cached_tokens", end.cached_tokens});
  }
  if (prefilled) {
    obs::Span& decode = of_sample("decode", times.prefilled_unix_nanos, now);
    decode.attributes.push_back({"gen_ai.usage.output_tokens", end.completion_tokens});
    decode.attributes.push_back({"sluice.retractions", end.retractions});
  }
  // What a client did is no error of the server.
  if (end.finish.kind != FinishKind::kAbort || end.finish.status_code < 500) return;
  spans_.back().status = obs::Span::Status::kError;
  spans_.back().message = end.finish.message;
}

void RequestTrace::answered(int status) {
  obs::Span& root = spans_.front();
  if (status == 0) {
    root.attributes.push_back({"error.type", std::string("client_gone")});
    return;
  }
  root.attributes.push_back({"http.response.status_code", int64_t{status}});
  if (status >= 500) fail(fmt::format("status {}", status));
}

void RequestTrace::fail(std::string_view message) {
  obs::Span& root = spans_.front();
  if (root.status == obs::Span::Status::kError) return;  // the first one says why
  root.status = obs::Span::Status::kError;
  root.message = message;
}

}  // namespace sluice::engine
