// W3C Trace Context, level 1: where a request stands in a trace that others began, or in one of its own.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sluice::net {
class Headers;
}

namespace sluice::obs {

using TraceId = std::array<uint8_t, 16>;
using SpanId = std::array<uint8_t, 8>;

struct TraceContext {
  TraceId trace_id{};
  SpanId span_id{};
  bool sampled = true;  // somebody records it

  // "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
  std::string to_header() const;
};

// None for what is malformed, of version ff, or has an id of zeros. Of a later version what level 1 knows.
std::optional<TraceContext> parse_traceparent(std::string_view header);

// What a request continues, by its headers: none where they name nothing that is valid, or two things.
std::optional<TraceContext> parent_of(const net::Headers& headers);

std::string to_hex(const TraceId& id);
std::string to_hex(const SpanId& id);
// Big-endian; zero becomes one, which is valid.
SpanId span_id_of(uint64_t number);
TraceId trace_id_of(uint64_t high, uint64_t low);

}  // namespace sluice::obs
