#include <bit>
#include <cstring>

#include "obs/span.h"

namespace sluice::obs {
namespace {

// Protobuf's wire format, as far as these messages use it.
class Message {
 public:
  void number(int field, uint64_t value) {
    tag(field, 0);
    varint(value);
  }
  void fixed64(int field, uint64_t value) {
    tag(field, 1);
    char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
    bytes_.append(bytes, sizeof(bytes));
  }
  void text(int field, std::string_view value) {
    tag(field, 2);
    varint(value.size());
    bytes_ += value;
  }
  template <size_t N>
  void id(int field, const std::array<uint8_t, N>& value) {
    text(field, {reinterpret_cast<const char*>(value.data()), N});
  }
  void message(int field, const Message& value) { text(field, value.bytes_); }
  std::string finish() { return std::move(bytes_); }

 private:
  void tag(int field, uint64_t type) { varint(static_cast<uint64_t>(field) << 3 | type); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// A string of protobuf is UTF-8, or the whole batch is refused: bytes that are none become '?'.
std::string valid_utf8(std::string text) {
  for (size_t at = 0; at < text.size();) {
    const auto lead = static_cast<unsigned char>(text[at]);
    const size_t size = lead < 0x80                   ? 1
                        : lead >= 0xc2 && lead < 0xe0 ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
    bool valid = size > 0 && at + size <= text.size();
    for (size_t i = 1; valid && i < size; ++i) valid = (static_cast<unsigned char>(text[at + i]) & 0xc0) == 0x80;
    if (valid && size >= 3) {
      const auto second = static_cast<unsigned char>(text[at + 1]);
      // Overlong forms, surrogates, and what is beyond the last character.
      valid = !(lead == 0xe0 && second < 0xa0) && !(lead == 0xed && second >= 0xa0) &&
              !(lead == 0xf0 && second < 0x90) && !(lead == 0xf4 && second >= 0x90);
    }
    if (!valid) text[at] = '?';
    at += valid ? size : 1;
  }
  return text;
}

// KeyValue { key = 1, value = 2 }, AnyValue { string = 1, int = 3, double = 4 }
Message encode(const Attribute& attribute) {
  Message value;
  if (const auto* text = std::get_if<std::string>(&attribute.value)) {
    value.text(1, valid_utf8(*text));
  } else if (const auto* number = std::get_if<int64_t>(&attribute.value)) {
    value.number(3, static_cast<uint64_t>(*number));
  } else {
    value.fixed64(4, std::bit_cast<uint64_t>(std::get<double>(attribute.value)));
  }
  Message out;
  out.text(1, attribute.key);
  out.message(2, value);
  return out;
}

// trace/v1/trace.proto
Message encode(const Span& span) {
  Message out;
  out.id(1, span.trace_id);
  out.id(2, span.id);
  if (span.parent != SpanId{}) out.id(4, span.parent);
  out.text(5, valid_utf8(span.name));
  out.number(6, static_cast<uint64_t>(span.kind));
  out.fixed64(7, static_cast<uint64_t>(span.begin_unix_nanos));
  out.fixed64(8, static_cast<uint64_t>(span.end_unix_nanos));
  for (const Attribute& attribute : span.attributes) out.message(9, encode(attribute));
  if (span.status != Span::Status::kUnset) {
    Message status;
    status.text(2, valid_utf8(span.message));
    status.number(3, static_cast<uint64_t>(span.status));
    out.message(15, status);
  }
  return out;
}

}  // namespace

std::string encode_spans(const std::vector<Span>& spans, const std::vector<Attribute>& resource) {
  Message described, scope, scope_spans, resource_spans, request;
  for (const Attribute& attribute : resource) described.message(1, encode(attribute));
  scope.text(1, "sluice");
  scope_spans.message(1, scope);
  for (const Span& span : spans) scope_spans.message(2, encode(span));
  resource_spans.message(1, described);
  resource_spans.message(2, scope_spans);
  request.message(1, resource_spans);
  return request.finish();
}

}  // namespace sluice::obs
