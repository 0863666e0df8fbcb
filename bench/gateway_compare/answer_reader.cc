#include "answer_reader.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace sluice::compare {
namespace {

constexpr std::string_view kStamp = "\"sent_at_ns\":";

std::optional<std::string_view> field_of(std::string_view head, std::string_view name) {
  for (size_t at = head.find("\r\n"); at != std::string_view::npos; at = head.find("\r\n", at + 2)) {
    const auto line = head.substr(at + 2, head.find("\r\n", at + 2) - at - 2);
    if (line.size() <= name.size() || line[name.size()] != ':') continue;
    if (strncasecmp(line.data(), name.data(), name.size()) != 0) continue;
    const auto value = line.find_first_not_of(' ', name.size() + 1);
    return value == std::string_view::npos ? std::string_view() : line.substr(value);
  }
  return std::nullopt;
}

bool is(std::optional<std::string_view> value, std::string_view wanted) {
  return value && value->size() >= wanted.size() && strncasecmp(value->data(), wanted.data(), wanted.size()) == 0;
}

}  // namespace

void AnswerReader::begin() {
  state_ = State::kHead;
  status_ = 0;
  left_ = 0;
  head_.clear();
  size_line_.clear();
  event_.clear();
  in_trailers_ = false;
}

AnswerReader::State AnswerReader::feed(std::string_view bytes, std::vector<StampedEvent>& events) {
  events_in_read_ = 0;
  if (state_ == State::kHead && !take_head(bytes)) return state_;
  if (state_ != State::kBody) return state_;
  if (framing_ == Framing::kChunked) {
    take_chunked(bytes, events);
    return state_;
  }
  take_body(bytes, events);
  if (framing_ == Framing::kLength) {
    left_ -= std::min(left_, bytes.size());
    if (left_ == 0) state_ = State::kDone;
  }
  return state_;
}

AnswerReader::State AnswerReader::end() {
  const bool whole = state_ == State::kBody && framing_ == Framing::kUntilClose;
  keeps_connection_ = false;
  return state_ = whole ? State::kDone : State::kBroken;
}

// True once the head is whole; `bytes` is then what follows it.
bool AnswerReader::take_head(std::string_view& bytes) {
  const size_t before = head_.size();
  head_.append(bytes);
  const size_t end = head_.find("\r\n\r\n", before < 3 ? 0 : before - 3);
  if (end == std::string::npos) return false;
  bytes.remove_prefix(end + 4 - before);
  head_.resize(end + 2);
  if (!head_.starts_with("HTTP/1.") || head_.size() < 12) {
    state_ = State::kBroken;
    return false;
  }
  status_ = std::atoi(head_.c_str() + 9);
  keeps_connection_ = !is(field_of(head_, "connection"), "close");
  is_stream_ = is(field_of(head_, "content-type"), "text/event-stream");
  state_ = State::kBody;
  if (const auto length = field_of(head_, "content-length")) {
    framing_ = Framing::kLength;
    left_ = std::strtoul(length->data(), nullptr, 10);
    if (left_ == 0) state_ = State::kDone;
  } else {
    framing_ = is(field_of(head_, "transfer-encoding"), "chunked") ? Framing::kChunked : Framing::kUntilClose;
  }
  return true;
}

void AnswerReader::take_chunked(std::string_view bytes, std::vector<StampedEvent>& events) {
  while (!bytes.empty()) {
    if (left_ > 0) {
      const size_t size = std::min(left_, bytes.size());
      // The last two bytes of `left_` are the line end.
      const size_t text = left_ > 2 ? std::min(size, left_ - 2) : 0;
      take_body(bytes.substr(0, text), events);
      left_ -= size;
      bytes.remove_prefix(size);
      continue;
    }
    const size_t line_end = bytes.find('\n');
    size_line_.append(bytes.substr(0, line_end));
    if (line_end == std::string_view::npos) return;
    bytes.remove_prefix(line_end + 1);
    if (in_trailers_) {
      if (size_line_ == "\r" || size_line_.empty()) state_ = State::kDone;
    } else {
      const size_t size = std::strtoul(size_line_.c_str(), nullptr, 16);
      in_trailers_ = size == 0;
      left_ = size == 0 ? 0 : size + 2;
    }
    size_line_.clear();
    if (state_ == State::kDone) return;
  }
}

void AnswerReader::take_body(std::string_view bytes, std::vector<StampedEvent>& events) {
  if (!is_stream_) return;
  while (!bytes.empty()) {
    const size_t line_end = bytes.find('\n');
    event_.append(bytes.substr(0, line_end));
    if (line_end == std::string_view::npos) return;
    bytes.remove_prefix(line_end + 1);
    // Each event is one line with data and an empty one.
    if (const size_t stamp = event_.find(kStamp); stamp != std::string::npos) {
      events.push_back({.sent_at_ns = std::strtoll(event_.c_str() + stamp + kStamp.size(), nullptr, 10),
                        .merged = events_in_read_++ > 0});
    }
    event_.clear();
  }
}

}  // namespace sluice::compare
