#include "parsers/reasoning.h"

#include <utility>

namespace sluice::parsers {
namespace {

constexpr std::string_view kSpace = " \n\r\t";

}  // namespace

bool begins_inside(const ReasoningFormat& format, std::string_view prompt_end, std::string_view prefix) {
  if (prefix.find(format.close) != std::string_view::npos) return false;
  if (prefix.find(format.open) != std::string_view::npos) return true;
  const auto end = trimmed(prompt_end);
  if (end.ends_with(format.close)) return false;
  return end.ends_with(format.open) || format.begins == ReasoningFormat::Begins::kInside;
}

ReasoningSplitter::ReasoningSplitter(const ReasoningFormat& format, bool inside, bool stream,
                                     std::vector<std::string_view> interrupts)
    : format_(format), inside_(inside), stream_(stream), marks_(std::move(interrupts)) {
  marks_.insert(marks_.begin(), format.close);
}

void ReasoningSplitter::push(std::string_view text, std::string& reasoning, std::string& answer) {
  window_.append(text);
  while (step(reasoning, answer)) {
  }
}

bool ReasoningSplitter::step(std::string& reasoning, std::string& answer) {
  switch (state_) {
    case State::kBegin:
      return take_begin(answer);
    case State::kReasoning:
      return take_reasoning(reasoning, answer);
    case State::kSpace: {
      std::string space;
      window_.take_space(space);
      if (window_.empty()) return false;
      state_ = State::kAnswer;
      return true;
    }
    case State::kAnswer:
      window_.take_all(answer);
      return false;
  }
  return false;
}

bool ReasoningSplitter::take_begin(std::string& answer) {
  if (format_.begins == ReasoningFormat::Begins::kInText) {
    answer += format_.open;
    state_ = State::kAnswer;
    return true;
  }
  window_.take_space(held_);
  const auto text = window_.rest();
  if (text.empty()) return false;
  if (text.starts_with(format_.open)) {
    bytes_ += held_.size() + format_.open.size();
    held_.clear();
    window_.drop(format_.open.size());
    // Inside there may be more of them.
    if (!inside_) state_ = State::kReasoning;
    return true;
  }
  if (format_.open.starts_with(text)) return false;
  if (inside_) {
    bytes_ += held_.size();
    held_.clear();
    state_ = State::kReasoning;
  } else {
    answer += held_;
    held_.clear();
    state_ = State::kAnswer;
  }
  return true;
}

bool ReasoningSplitter::take_reasoning(std::string& reasoning, std::string& answer) {
  std::string text;
  const auto mark = window_.take_until(marks_, text);
  bytes_ += text.size();
  held_ += text;
  if (!mark && !stream_) return false;
  show_held(reasoning);
  if (!mark) return false;
  held_.clear();
  if (*mark == 0) {
    bytes_ += format_.close.size();
    state_ = State::kSpace;
  } else {
    answer += marks_[*mark];
    state_ = State::kAnswer;
  }
  return true;
}

// But for white space before the first of it and after the last.
void ReasoningSplitter::show_held(std::string& reasoning) {
  const auto text = shown_ ? std::string_view(held_) : trimmed(held_);
  const auto sure = text.substr(0, text.find_last_not_of(kSpace) + 1);
  reasoning += sure;
  held_.erase(0, static_cast<size_t>(sure.data() + sure.size() - held_.data()));
  shown_ = shown_ || !sure.empty();
}

void ReasoningSplitter::finish(std::string& reasoning, std::string& answer) {
  const bool thinking = state_ == State::kReasoning || (state_ == State::kBegin && inside_);
  std::string& out = thinking ? reasoning : answer;
  if (thinking) bytes_ += window_.rest().size();
  if (state_ == State::kSpace) return;
  out += std::exchange(held_, {});
  window_.take_all(out);
}

}  // namespace sluice::parsers
