// Requests and responses on one connection. However the bytes are cut, the parser sees the same messages; nothing that
// it accepts can be read in two ways; and what it has read, written down again, is the same message.
#include <algorithm>

#include "messages.h"

using namespace sluice;
using fuzz::Message;

namespace {

void check_message(const Message& message, net::MessageParser::Kind kind) {
  if (!message.ok) {
    const int status = message.error_status;
    FUZZ_CHECK(status == 0 || status == 400 || status == 431 || status == 501 || status == 505,
               "an error has a status");
    return;
  }
  FUZZ_CHECK(!(message.chunked && message.has_length), "a message has one length");
  std::string written = kind == net::MessageParser::Kind::kRequest ? message.start + " HTTP/1.1\r\n"
                                                                   : "HTTP/1.1 " + message.start + "\r\n";
  int hosts = 0;
  for (const auto& [name, value] : message.headers) {
    FUZZ_CHECK(!name.empty() && name.find_first_of(" \t:\r\n") == std::string::npos, "a name is a token");
    FUZZ_CHECK(value.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos, "a value is one line");
    hosts += net::iequals(name, "host");
    if (!net::is_framing_field(name)) net::append_field(written, name, value);
  }
  FUZZ_CHECK(kind == net::MessageParser::Kind::kResponse || hosts <= 1, "a request has one Host");
  if (hosts == 0) written += "Host: x\r\n";  // of HTTP/1.0
  written += "Content-Length: 0\r\n\r\n";
  const auto again = fuzz::parse_at_once(written, kind);
  if (written.size() > fuzz::kMaxHead) return;
  FUZZ_CHECK(again.size() == 1 && again[0].ok, "what was read can be written");
  FUZZ_CHECK(again[0].start == message.start, "the first line stays");
  size_t at = 0;
  for (const auto& field : message.headers) {
    if (net::is_framing_field(field.first)) continue;
    FUZZ_CHECK(at < again[0].headers.size() && again[0].headers[at] == field, "the fields stay, in their order");
    ++at;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t choice = input.byte();
  const uint8_t seed = input.byte();
  const auto kind = choice % 2 == 0 ? net::MessageParser::Kind::kRequest : net::MessageParser::Kind::kResponse;
  const bool no_body = kind == net::MessageParser::Kind::kResponse && choice / 2 % 4 == 3;
  const auto whole = fuzz::parse_at_once(input.rest(), kind, no_body);
  FUZZ_CHECK(whole == fuzz::parse_in_pieces(input.rest(), kind, no_body, seed), "cuts make no difference");
  for (const Message& message : whole) check_message(message, kind);
  return 0;
}
