// HTTP messages as a connection shows them to the parser: what it does not use is shown again, with more.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz.h"
#include "net/wire.h"

namespace sluice::fuzz {

struct Message {
  bool ok = true;
  int error_status = 0;
  std::string start;  // what the first line says
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers, trailers;
  bool keep_alive = false, chunked = false;
  bool has_length = false;
  size_t used = 0;  // bytes up to its end

  bool operator==(const Message&) const = default;
};

inline constexpr size_t kMaxHead = 512;

// All messages of `bytes` up to the first error or the end, which is then an error too unless it falls between two.
template <class NextPiece>
std::vector<Message> parse_messages(std::string_view bytes, net::MessageParser::Kind kind, bool no_body,
                                    NextPiece next_piece) {
  using Status = net::MessageParser::Status;
  net::MessageParser parser(kind, kMaxHead);
  std::vector<Message> messages;
  std::string shown;
  size_t arrived = 0;
  const auto more = [&] {
    if (arrived == bytes.size()) return false;
    const size_t piece = next_piece(bytes.size() - arrived);
    shown += bytes.substr(arrived, piece);
    arrived += piece;
    return true;
  };
  for (bool first = true; !shown.empty() || arrived < bytes.size(); first = false) {
    if (!first || no_body) parser.reset(no_body);
    Message& message = messages.emplace_back();
    const auto failed = [&](bool known) {
      message = {.ok = false, .error_status = known ? parser.error_status() : 0};
      return messages;
    };
    for (;;) {
      size_t used = 0;
      const Status status = parser.parse_head(shown, used);
      FUZZ_CHECK(used <= shown.size(), "a head is not longer than what was shown");
      shown.erase(0, used);
      if (status == Status::kDone) break;
      if (status == Status::kError) return failed(true);
      if (!more()) return failed(false);
    }
    while (!parser.done()) {
      size_t used = 0;
      std::string_view body;
      const Status status = parser.parse_body(shown.data(), shown.size(), used, body);
      if (status == Status::kError) return failed(true);
      FUZZ_CHECK(used <= shown.size() && body.size() <= used, "a body is not longer than what was shown");
      message.body += body;
      shown.erase(0, used);
      if (status == Status::kNeedMore && !more() && !parser.end_of_stream()) return failed(false);
    }
    const bool request = kind == net::MessageParser::Kind::kRequest;
    message.start = request ? parser.request().method + " " + parser.request().target
                            : fmt::format("{:03} {}", parser.response().status, parser.response().reason.value_or(""));
    for (const auto& field : request ? parser.request().headers : parser.response().headers) {
      message.headers.push_back(field);
    }
    for (const auto& field : parser.trailers()) message.trailers.push_back(field);
    message.keep_alive = parser.keep_alive();
    message.chunked = parser.chunked();
    message.has_length = parser.content_length().has_value();
    message.used = arrived - shown.size();
  }
  return messages;
}

inline std::vector<Message> parse_at_once(std::string_view bytes, net::MessageParser::Kind kind, bool no_body = false) {
  return parse_messages(bytes, kind, no_body, [](size_t left) { return left; });
}

inline std::vector<Message> parse_in_pieces(std::string_view bytes, net::MessageParser::Kind kind, bool no_body,
                                            uint8_t seed) {
  Splits splits(seed);
  return parse_messages(bytes, kind, no_body, [&](size_t left) { return splits.next(left); });
}

}  // namespace sluice::fuzz
