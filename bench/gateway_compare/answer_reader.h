// Reads answers of HTTP/1.1 servers as they arrive and counts the events of streamed ones. No more of HTTP than servers
// and gateways send to a client that keeps its connection: Content-Length, chunks, or a body that ends with the
// connection.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::compare {

// One event of a stream with a stamp of `sluice bench worker --canned-stamp`.
struct StampedEvent {
  int64_t sent_at_ns = 0;  // on the machine's monotonic clock
  bool merged = false;     // came in one read with an event before it
};

// One thread.
class AnswerReader {
 public:
  enum class State { kHead, kBody, kDone, kBroken };

  void begin();
  // The bytes of one read. `events` gets the stamped events that it completes.
  State feed(std::string_view bytes, std::vector<StampedEvent>& events);
  // The server closed the connection: the end of a body that ends so, else broken.
  State end();

  int status() const { return status_; }
  bool keeps_connection() const { return keeps_connection_; }

 private:
  enum class Framing { kLength, kChunked, kUntilClose };

  bool take_head(std::string_view& bytes);
  void take_chunked(std::string_view bytes, std::vector<StampedEvent>& events);
  void take_body(std::string_view bytes, std::vector<StampedEvent>& events);

  State state_ = State::kHead;
  Framing framing_ = Framing::kLength;
  bool keeps_connection_ = true;
  bool is_stream_ = false;
  int status_ = 0;
  size_t left_ = 0;        // of the body or of the chunk, with the line end behind a chunk
  std::string head_;       // as far as it is here
  std::string size_line_;  // of a chunk, as far as it is here
  bool in_trailers_ = false;
  std::string event_;  // begun
  size_t events_in_read_ = 0;
};

}  // namespace sluice::compare
