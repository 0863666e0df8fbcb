// Spans as OpenTelemetry has them, and how a request's record becomes some.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "obs/journal.h"
#include "obs/trace_context.h"

namespace sluice::obs {

struct Attribute {
  std::string_view key;  // a literal
  std::variant<std::string, int64_t, double> value;
};

struct Span {
  enum class Kind { kInternal = 1, kServer = 2 };
  enum class Status { kUnset = 0, kError = 2 };

  TraceId trace_id{};
  SpanId id{};
  SpanId parent{};  // zeros = none
  std::string name;
  Kind kind = Kind::kInternal;
  int64_t begin_unix_nanos = 0;
  int64_t end_unix_nanos = 0;
  std::vector<Attribute> attributes;
  Status status = Status::kUnset;
  std::string message;  // of an error
};

// What OpenTelemetry's semantic conventions of generative AI call the operation of a route; empty for what they have no
// word for.
std::string_view operation_of(std::string_view route);

// One for the request, and below it one for each of its phases: queue, read, choose, connect, first byte, stream; of
// each attempt those that it came to. The record must have a trace.
std::vector<Span> spans_of(const RequestRecord& record);

// An ExportTraceServiceRequest in protobuf's wire format (opentelemetry-proto 1.x), all spans of one resource.
std::string encode_spans(const std::vector<Span>& spans, const std::vector<Attribute>& resource);

}  // namespace sluice::obs
