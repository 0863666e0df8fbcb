// How HTTP/1.1 messages stand on the wire: the parser that server and client share, and the writing of heads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "net/http.h"

namespace sluice::net {

struct HeadFacts;

// Parses one message after the other out of its caller's buffer; owns no bytes but the parsed head. Beast reads the
// head's grammar, once the whole head is there; framing and whatever could be read in two ways is decided here: a
// message with a Content-Length and a Transfer-Encoding, differing Content-Lengths, another coding than "chunked",
// folded lines, bare line feeds and chunk sizes out of the grammar are errors.
class MessageParser {
 public:
  enum class Kind { kRequest, kResponse };
  enum class Status { kNeedMore, kDone, kError };

  MessageParser(Kind kind, size_t max_head_bytes);
  ~MessageParser();
  MessageParser(const MessageParser&) = delete;
  MessageParser& operator=(const MessageParser&) = delete;

  // Before each message but the first. `no_body`: it answers a HEAD request.
  void reset(bool no_body = false);

  // `data` is all of the message that arrived so far; after kNeedMore call again with the same bytes and more. `used`
  // is the size of the head on kDone.
  Status parse_head(std::string_view data, size_t& used);
  // Removes the framing from `data`. `used` bytes of it need not be shown again; `body` is the part of them that is
  // body, moved together inside [data, data + used). kDone: that was the last of it.
  Status parse_body(char* data, size_t size, size_t& used, std::string_view& body);
  // The connection was closed. True if that is a proper end of this message.
  bool end_of_stream();

  // After the head was parsed. The caller may move them away.
  RequestHead& request() { return request_; }
  ResponseHead& response() { return response_; }
  // What followed a chunked body; whole when done().
  Headers& trailers() { return trailers_; }
  bool done() const { return framing_ == Framing::kDone; }
  bool keep_alive() const { return keep_alive_; }
  bool chunked() const { return chunked_; }
  // Of the message; none if chunked or until the connection's end.
  std::optional<uint64_t> content_length() const { return content_length_; }

  // After kError: the status that a server answers with, and the error.
  int error_status() const { return error_status_; }
  const Error& error() const { return error_; }

 private:
  enum class Framing { kHead, kLength, kChunked, kUntilClose, kDone };
  enum class Chunk {
    kSize,
    kExtension,
    kSizeLf,
    kData,
    kDataCr,
    kDataLf,
    kTrailerStart,
    kTrailer,
    kTrailerLf,
    kLastLf
  };

  Status fail(int status, ErrorCode code, std::string message);
  Status accept_head(std::string_view head);
  Status accept_framing(const HeadFacts& facts);
  Status parse_chunked(char* data, size_t size, size_t& used, std::string_view& body);
  const char* chunk_control(char c);
  bool take_trailer();

  // Constant after construction.
  const Kind kind_;
  const size_t max_head_bytes_;

  bool no_body_ = false;
  Framing framing_ = Framing::kHead;
  size_t head_start_ = 0;  // after blank lines
  size_t line_start_ = 0;
  size_t scanned_ = 0;
  uint64_t remaining_ = 0;  // of the body, or of the chunk
  Chunk chunk_ = Chunk::kSize;
  int size_digits_ = 0;
  size_t trailer_bytes_ = 0;
  std::string trailer_line_;
  Headers trailers_;
  RequestHead request_;
  ResponseHead response_;
  bool keep_alive_ = false;
  bool chunked_ = false;
  std::optional<uint64_t> content_length_;
  int error_status_ = 400;
  Error error_;
};

// "Name: value" and CRLF; control characters in the value become spaces, so that no value can end its line.
void append_field(std::string& out, std::string_view name, std::string_view value);

// The chunk that ends a body, with the trailers; fields that have no business there (RFC 9110, 6.5.1) are left out.
std::string last_chunk(const Headers& trailers);

// True for the fields that say where a message ends; whoever writes a head decides them itself.
bool is_framing_field(std::string_view name);

}  // namespace sluice::net
