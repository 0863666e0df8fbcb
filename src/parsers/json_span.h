// Finds where a JSON value ends in a text that comes in pieces, without reading the value.
#pragma once

#include <cstddef>
#include <string_view>

namespace sluice::parsers {

// Knows strings and nesting only: what stands between is not checked.
class JsonSpan {
 public:
  // How many bytes at the front of `text` belong to the value; white space before it belongs to it. All of them while
  // the value goes on. A number, or a word, ends before what cannot be part of it.
  size_t push(std::string_view text);
  bool done() const { return state_ == State::kDone; }

 private:
  enum class State { kBefore, kWord, kNested, kString, kEscape, kDone };
  State state_ = State::kBefore;
  size_t depth_ = 0;
};

}  // namespace sluice::parsers
