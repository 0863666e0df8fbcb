#include "gateway/tracing.h"

namespace sluice::gateway {

void begin_trace(const net::Headers& headers, Rng& rng, obs::RequestRecord& record) {
  const auto parent = obs::parent_of(headers);
  if (parent && !parent->sampled) return;
  record.trace.emplace();
  record.trace->span_id = obs::span_id_of(rng.next());
  record.trace->trace_id = parent ? parent->trace_id : obs::trace_id_of(rng.next(), rng.next());
  if (parent) record.parent_span = parent->span_id;
}

void pass_on(const obs::RequestRecord& record, net::Headers& headers) {
  headers.set("traceparent", record.trace->to_header());
  // It says something about a trace that is not continued.
  if (record.parent_span == obs::SpanId{}) headers.remove("tracestate");
}

}  // namespace sluice::gateway
