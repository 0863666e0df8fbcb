#include "obs/trace_context.h"

#include <fmt/format.h>

#include <algorithm>

#include "net/http.h"

namespace sluice::obs {
namespace {

// Lower case only, as the standard wants it.
int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

template <size_t N>
bool read_hex(std::string_view text, std::array<uint8_t, N>& bytes) {
  for (size_t i = 0; i < N; ++i) {
    const int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

template <size_t N>
std::string hex(const std::array<uint8_t, N>& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text(2 * N, '0');
  for (size_t i = 0; i < N; ++i) {
    text[2 * i] = kDigits[bytes[i] >> 4];
    text[2 * i + 1] = kDigits[bytes[i] & 15];
  }
  return text;
}

template <size_t N>
void put_big_endian(std::array<uint8_t, N>& bytes, size_t at, uint64_t number) {
  for (size_t i = 0; i < 8; ++i) bytes[at + i] = static_cast<uint8_t>(number >> (56 - 8 * i));
}

template <size_t N>
bool is_zero(const std::array<uint8_t, N>& bytes) {
  return std::ranges::all_of(bytes, [](uint8_t byte) { return byte == 0; });
}

}  // namespace

std::string TraceContext::to_header() const {
  return fmt::format("00-{}-{}-{}", to_hex(trace_id), to_hex(span_id), sampled ? "01" : "00");
}

std::optional<TraceContext> parse_traceparent(std::string_view header) {
  constexpr size_t kSize = 55;
  if (header.size() < kSize || header[2] != '-' || header[35] != '-' || header[52] != '-') return std::nullopt;
  std::array<uint8_t, 1> version{}, flags{};
  TraceContext context;
  const bool readable = read_hex(header, version) && read_hex(header.substr(3), context.trace_id) &&
                        read_hex(header.substr(36), context.span_id) && read_hex(header.substr(53), flags);
  if (!readable || version[0] == 0xff || is_zero(context.trace_id) || is_zero(context.span_id)) return std::nullopt;
  if (header.size() > kSize && (version[0] == 0 || header[kSize] != '-')) return std::nullopt;
  context.sampled = (flags[0] & 1) != 0;
  return context;
}

std::optional<TraceContext> parent_of(const net::Headers& headers) {
  const auto is_traceparent = [](const auto& field) { return net::iequals(field.first, "traceparent"); };
  if (std::ranges::count_if(headers, is_traceparent) != 1) return std::nullopt;
  return parse_traceparent(*headers.get("traceparent"));
}

std::string to_hex(const TraceId& id) { return hex(id); }
std::string to_hex(const SpanId& id) { return hex(id); }

SpanId span_id_of(uint64_t number) {
  SpanId id{};
  put_big_endian(id, 0, number == 0 ? 1 : number);
  return id;
}

TraceId trace_id_of(uint64_t high, uint64_t low) {
  TraceId id{};
  put_big_endian(id, 0, high);
  put_big_endian(id, 8, low == 0 ? 1 : low);
  return id;
}

}  // namespace sluice::obs
