#include "parsers/text_window.h"

#include <algorithm>

namespace sluice::parsers {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

size_t possible_mark(std::string_view text, Marks marks) {
  size_t longest = 0;
  for (const auto mark : marks) {
    for (size_t n = std::min(text.size(), mark.size() - 1); n > longest; --n) {
      if (text.ends_with(mark.substr(0, n))) longest = n;
    }
  }
  return text.size() - longest;
}

void TextWindow::append(std::string_view text) {
  text_.erase(0, begin_);
  begin_ = 0;
  text_ += text;
}

void TextWindow::put_front(std::string_view text) {
  text_.replace(0, begin_, text);
  begin_ = 0;
}

std::optional<size_t> TextWindow::take_until(Marks marks, std::string& out) {
  const auto text = rest();
  size_t at = std::string_view::npos;
  size_t which = 0;
  for (size_t i = 0; i < marks.size(); ++i) {
    const size_t found = text.find(marks[i]);
    if (found >= at) continue;
    at = found;
    which = i;
  }
  if (at == std::string_view::npos) {
    const size_t sure = possible_mark(text, marks);
    out += text.substr(0, sure);
    drop(sure);
    return std::nullopt;
  }
  out += text.substr(0, at);
  drop(at + marks[which].size());
  return which;
}

void TextWindow::take_all(std::string& out) {
  out += rest();
  begin_ = text_.size();
}

void TextWindow::take_space(std::string& out) {
  const auto text = rest();
  size_t n = 0;
  while (n < text.size() && is_space(text[n])) ++n;
  out += text.substr(0, n);
  drop(n);
}

}  // namespace sluice::parsers
