#include "parsers/json_span.h"

#include "parsers/text_window.h"

namespace sluice::parsers {

size_t JsonSpan::push(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    switch (state_) {
      case State::kDone:
        return i;
      case State::kEscape:
        state_ = State::kString;
        break;
      case State::kString:
        if (c == '\\') state_ = State::kEscape;
        if (c == '"') state_ = depth_ == 0 ? State::kDone : State::kNested;
        break;
      case State::kWord:
        if (is_space(c) || c == ',' || c == ']' || c == '}') {
          state_ = State::kDone;
          return i;
        }
        break;
      case State::kBefore:
        if (is_space(c)) break;
        [[fallthrough]];
      case State::kNested:
        if (c == '"') {
          state_ = State::kString;
        } else if (c == '{' || c == '[') {
          state_ = State::kNested;
          ++depth_;
        } else if (state_ == State::kBefore) {
          state_ = State::kWord;
        } else if (c == '}' || c == ']') {
          if (--depth_ == 0) state_ = State::kDone;
        }
        break;
    }
  }
  return text.size();
}

}  // namespace sluice::parsers
