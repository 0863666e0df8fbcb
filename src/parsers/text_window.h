// The end of a growing text that is not decided yet: what parsers look for marks in, whatever pieces the text comes in.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace sluice::parsers {

using Marks = std::span<const std::string_view>;

// Where `text` begins to be what may become one of `marks`; its size when no end of it may.
size_t possible_mark(std::string_view text, Marks marks);

class TextWindow {
 public:
  void append(std::string_view text);
  std::string_view rest() const { return std::string_view(text_).substr(begin_); }
  bool empty() const { return begin_ == text_.size(); }
  void drop(size_t bytes) { begin_ += bytes; }
  // What was dropped or taken since the last append() is there again.
  void put_back(size_t bytes) { begin_ -= bytes; }
  // Likewise what was taken earlier: it is looked at again.
  void put_front(std::string_view text);

  // Moves what stands before the first of `marks` to the end of `out`, takes the mark away and says which one it was.
  // Without one, moves what cannot be part of one. No mark begins another, or holds the beginning of another. What
  // stays is shorter than a mark, so that all calls together cost as much as the text is long.
  std::optional<size_t> take_until(Marks marks, std::string& out);
  void take_all(std::string& out);
  // Moves white space at the front to `out`.
  void take_space(std::string& out);

 private:
  std::string text_;
  size_t begin_ = 0;
};

bool is_space(char c);
// Without white space around.
std::string_view trimmed(std::string_view text);

}  // namespace sluice::parsers
