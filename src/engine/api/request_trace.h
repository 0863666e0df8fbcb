// Traces of requests for an OpenTelemetry receiver: a span for each request, below the one that its client (the
// gateway, say) names, and below it one for each stage on its way through the front and its rank.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/messages.h"
#include "net/http.h"
#include "obs/span.h"

namespace sluice::obs {
class TraceExporter;
}

namespace sluice::engine {

class RequestTrace;

// Any thread.
class Tracer {
 public:
  // What is recorded, as SGLang numbers it: nothing, the request alone, the stages of its first sample as well, those
  // of every sample.
  enum Level : int64_t { kOff = 0, kRequests = 1, kStages = 2, kSamples = 3 };

  // `exporter` null: nothing is ever traced.
  Tracer(std::shared_ptr<obs::TraceExporter> exporter, const Clock& clock, int64_t level);

  bool enabled() const { return exporter_ != nullptr; }
  void set_level(int64_t level) { level_ = level; }

  // Null where the request is not recorded: tracing is off, or its client says that nobody records it. `route`: the
  // path as it is known here, which outlives the trace.
  std::shared_ptr<RequestTrace> begin(const net::RequestHead& head, std::string_view route);

 private:
  friend class RequestTrace;
  obs::SpanId new_span_id();

  const std::shared_ptr<obs::TraceExporter> exporter_;
  const Clock& clock_;
  std::atomic<int64_t> level_;

  std::mutex mu_;
  Rng rng_;  // guarded by mu_
};

// Of one request. Ends, and is handed over, with the last one that holds it: the handler of the exchange, or what goes
// on in the background. Used by one loop.
class RequestTrace {
 public:
  // Samples whose stages are recorded, of a request with many.
  static constexpr size_t kMostSamples = 64;

  RequestTrace(Tracer& tracer, obs::Span root, int64_t level);
  ~RequestTrace();
  RequestTrace(const RequestTrace&) = delete;

  // The body is there: what follows is reading it, rendering and tokenizing its prompt.
  void body_read();
  // The first sample goes to its rank.
  void submitted();
  // It has ended.
  void sample_ended(size_t index, const RequestOutput& end);
  // Status of the answer; 0: the client left before there was one. What goes wrong later is fail()'s.
  void answered(int status);
  void fail(std::string_view message);

 private:
  obs::Span& stage(std::string_view name, int64_t begin, int64_t end);

  Tracer& tracer_;
  const int64_t level_;
  std::vector<obs::Span> spans_;  // the request's first
  int64_t body_at_ = 0, submitted_at_ = 0;
  size_t samples_ = 0;
};

}  // namespace sluice::engine
