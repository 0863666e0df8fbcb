// A chunked body, held against a decoder that takes the text line by line (and knows no bounds on extensions and
// trailers: inputs are shorter).
#include "messages.h"

using namespace sluice;
using fuzz::Message;

namespace {

constexpr std::string_view kHead = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

struct Decoded {
  bool ok = false;
  std::string body;
  size_t used = 0;
};

bool is_hex(char c) { return std::string_view("0123456789abcdefABCDEF").find(c) != std::string_view::npos; }

// The line that begins at `at`, which ends with CRLF and has no LF in it; npos at the end: there is none. A lone CR is
// an error wherever it stands.
bool take_line(std::string_view text, size_t& at, std::string_view& line) {
  const size_t end = text.find_first_of("\r\n", at);
  if (end == std::string_view::npos || text.substr(end, 2) != "\r\n") return false;
  line = text.substr(at, end - at);
  at = end + 2;
  return true;
}

bool is_field(std::string_view line) {
  const size_t colon = line.find(':');
  if (colon == 0 || colon == std::string_view::npos) return false;
  for (const char c : line.substr(0, colon)) {
    const bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!alphanumeric && std::string_view("!#$%&'*+-.^_`|~").find(c) == std::string_view::npos) return false;
  }
  return true;
}

Decoded decode(std::string_view text) {
  Decoded decoded;
  size_t at = 0;
  std::string_view line;
  for (;;) {
    if (!take_line(text, at, line)) return decoded;
    size_t digits = 0;
    while (digits < line.size() && is_hex(line[digits])) ++digits;
    const std::string_view extension = line.substr(digits);
    if (digits == 0 || digits > 15) return decoded;
    if (!extension.empty() && std::string_view("; \t").find(extension[0]) == std::string_view::npos) return decoded;
    const uint64_t size = std::stoull(std::string(line.substr(0, digits)), nullptr, 16);
    if (size == 0) break;
    if (size > text.size() - at || text.substr(at + size, 2) != "\r\n") return decoded;
    decoded.body += text.substr(at, size);
    at += size + 2;
  }
  while (take_line(text, at, line)) {
    if (line.empty()) {
      decoded.ok = true;
      decoded.used = at;
      return decoded;
    }
    if (!is_field(line)) return decoded;
  }
  return decoded;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t seed = input.byte();
  const std::string_view body = input.rest();
  const std::string message = std::string(kHead).append(body);
  const auto request = net::MessageParser::Kind::kRequest;
  const auto whole = fuzz::parse_at_once(message, request);
  FUZZ_CHECK(whole == fuzz::parse_in_pieces(message, request, false, seed), "cuts make no difference");
  const Decoded expected = decode(body);
  const Message& first = whole.at(0);
  FUZZ_CHECK(first.ok == expected.ok, "the slow decoder agrees on what is a chunked body");
  if (!first.ok) return 0;
  FUZZ_CHECK(first.body == expected.body, "the slow decoder agrees on the body");
  FUZZ_CHECK(first.used == kHead.size() + expected.used, "the slow decoder agrees on where it ends");
  for (const auto& [name, value] : first.trailers) {
    FUZZ_CHECK(value.find_first_of("\r\n") == std::string::npos, "a trailer is one line");
  }
  // A body and its trailers, written again as the server writes them.
  net::Headers trailers;
  for (const auto& [name, value] : first.trailers) trailers.add(name, value);
  std::string again(kHead);
  if (!first.body.empty()) {
    char line[32];
    std::snprintf(line, sizeof line, "%zx\r\n", first.body.size());
    again.append(line).append(first.body).append("\r\n");
  }
  again += net::last_chunk(trailers);
  const auto reread = fuzz::parse_at_once(again, request);
  FUZZ_CHECK(reread.size() == 1 && reread[0].ok && reread[0].body == first.body, "what was read can be written");
  return 0;
}
