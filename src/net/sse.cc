#include "net/sse.h"

#include <algorithm>

namespace sluice::net {

void append_sse(std::string& out, std::string_view payload) {
  out.reserve(out.size() + payload.size() + 8);
  for (;;) {
    const auto end = payload.find_first_of("\r\n");
    out.append("data: ").append(payload.substr(0, end)).push_back('\n');
    if (end == std::string_view::npos) break;
    payload.remove_prefix(payload.substr(end).starts_with("\r\n") ? end + 2 : end + 1);
  }
  out.push_back('\n');
}

bool SseReader::feed(std::string_view bytes, const std::function<void(std::string_view data)>& on_event) {
  while (!bytes.empty() && !overflowed_) {
    if (last_was_cr_) {
      last_was_cr_ = false;
      if (bytes.front() == '\n') {
        bytes.remove_prefix(1);
        continue;
      }
    }
    const auto end = static_cast<size_t>(
        std::find_if(bytes.begin(), bytes.end(), [](char c) { return c == '\n' || c == '\r'; }) - bytes.begin());
    if (line_.size() + data_.size() + end > max_event_bytes_) {
      overflowed_ = true;
      break;
    }
    if (end == bytes.size()) {
      line_.append(bytes);
      break;
    }
    std::string_view line = bytes.substr(0, end);
    if (!line_.empty()) line = line_.append(line);
    last_was_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);

    if (first_line_ && line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
    first_line_ = false;
    if (line.empty()) {
      // The blank line that ends an event; without data there is no event.
      if (has_data_) on_event(data_);
      has_data_ = false;
      data_.clear();
    } else if (line == "data" || line.starts_with("data:")) {
      std::string_view value = line.size() > 5 ? line.substr(5) : std::string_view();
      if (value.starts_with(' ')) value.remove_prefix(1);
      if (has_data_) data_.push_back('\n');
      data_.append(value);
      has_data_ = true;
    }
    line_.clear();
  }
  return !overflowed_;
}

}  // namespace sluice::net
