// Sends the traces of requests to an OpenTelemetry receiver, in batches, from a thread of its own. Whoever adds a
// record never waits: what the queue has no room for is dropped and counted, and so is a batch that could not be
// delivered.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/http.h"
#include "obs/journal.h"
#include "obs/metrics.h"
#include "obs/span.h"

namespace sluice::net {
class TlsContext;
}

namespace sluice::obs {

// Where traces go: "host:port" by OTLP/gRPC, "grpcs://host:port" the same over TLS; a URL, http or https, by OTLP/HTTP,
// to /v1/traces where it has no path.
struct TraceEndpoint {
  bool is_grpc = true;
  net::Url url;
};
// kBadOption, kInvalidArgument for another kind of URL.
Result<TraceEndpoint> parse_trace_endpoint(std::string_view text);

// Of OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY of the environment; null where none is set.
// kBadOption, naming the variables and the file.
Result<std::shared_ptr<net::TlsContext>> trace_certificates();
// OTEL_SERVICE_NAME of the environment.
std::string trace_service_name(std::string_view otherwise);

class TraceExporter {
 public:
  // What waits, and as much again may be under delivery: requests, and their spans, of which some have many.
  static constexpr size_t kMostWaiting = 2048;
  static constexpr size_t kMostSpans = 16'384;
  // Of one delivery: far below the 4 MiB that gRPC servers take by default. A request is not split.
  static constexpr size_t kBatchSpans = 1024;

  // Of traces, each a request with all its spans.
  struct Counters {
    Counter exported, queue_full, failed;
  };
  struct Timing {
    Duration gathering = std::chrono::milliseconds(500);    // of one batch
    Duration first_pause = std::chrono::milliseconds(500);  // before a second delivery of a batch; then doubled
    Duration farewell = std::chrono::seconds(2);            // for what waits at the end
  };
  // `tls`: for https and grpcs; without it the system's authorities and no certificate.
  TraceExporter(TraceEndpoint endpoint, std::string service_name, Counters counters, Timing timing,
                std::shared_ptr<net::TlsContext> tls = {});
  // Delivers what waits, or lets go of it when the time for that is over.
  ~TraceExporter();

  // Any thread. The record has a trace.
  void add(const RequestRecord& record);
  // All spans of one request. Any thread.
  void add(std::vector<Span> spans);

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::obs
