// Server-sent events (WHATWG HTML, 9.2): writing a frame, and a reader that takes bytes in any split.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace sluice::net {

// "data: <payload>\n\n"; a payload with newlines becomes several data lines.
void append_sse(std::string& out, std::string_view payload);

// Feeds on bytes as they arrive and calls back once per complete event with its joined data; never holds back an event
// that is complete. CR, LF and CRLF line ends, comments, a BOM and other fields are handled as the standard says.
class SseReader {
 public:
  // `max_event_bytes` bounds an event without an end; feed() then returns false for ever.
  explicit SseReader(size_t max_event_bytes = 16 << 20) : max_event_bytes_(max_event_bytes) {}

  bool feed(std::string_view bytes, const std::function<void(std::string_view data)>& on_event);

 private:
  size_t max_event_bytes_;
  std::string line_;
  std::string data_;
  bool has_data_ = false;
  bool last_was_cr_ = false;
  bool first_line_ = true;
  bool overflowed_ = false;
};

}  // namespace sluice::net
