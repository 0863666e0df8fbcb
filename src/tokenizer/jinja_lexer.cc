#include "tokenizer/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "tokenizer/jinja_value.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer::jinja {

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_name(char c) { return is_name_start(c) || is_digit(c); }

// One kind of newline, and none at the very end.
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    emit(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  void emit(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  [[noreturn]] void fail(std::string message) const { throw TemplateError{std::move(message), line_}; }

  // Moves on, counting lines.
  void advance(size_t n) {
    if (n == 0) return;
    const auto passed = rest().substr(0, n);
    line_ += static_cast<int>(std::count(passed.begin(), passed.end(), '\n'));
    line_starting_ = passed.ends_with('\n');
    at_ += n;
  }

  void text() {
    size_t begin = at_;
    while ((begin = source_.find('{', begin)) != std::string::npos) {
      const char next = begin + 1 < source_.size() ? source_[begin + 1] : 0;
      if (next == '{' || next == '%' || next == '#') break;
      ++begin;
    }
    if (begin == std::string::npos) {
      add_text(rest());
      advance(rest().size());
      return;
    }
    const char kind = source_[begin + 1];
    const char sign = begin + 2 < source_.size() ? source_[begin + 2] : 0;
    std::string_view before = std::string_view(source_).substr(at_, begin - at_);
    if (sign == '-') {
      before = strip_right(before);
    } else if (sign != '+' && kind != '{') {
      // lstrip_blocks: a tag that is the first thing on its line takes the white space before it along.
      const size_t line_begin = before.rfind('\n') + 1;  // 0 when there is none
      if ((line_begin > 0 || line_starting_) && strip_left(before.substr(line_begin)).empty()) {
        before = before.substr(0, line_begin);
      }
    }
    add_text(before);
    advance(begin - at_);
    const size_t opening = sign == '-' || sign == '+' ? 3 : 2;
    if (kind == '#') {
      comment(opening);
    } else if (kind == '%' && raw(opening)) {
      return;
    } else {
      emit(kind == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, "");
      advance(opening);
      expression(kind == '{' ? '}' : '%');
    }
  }

  void add_text(std::string_view text) {
    if (!text.empty()) emit(TokenKind::kText, std::string(text));
  }

  void skip_spaces() { advance(rest().size() - strip_left(rest()).size()); }

  // The end of a tag at `rest()`, which begins with `close` after an optional sign: "-" takes all white space that
  // follows, and without "+" a block takes one newline (trim_blocks).
  void close_tag(std::string_view close, bool trim) {
    const char sign = rest().front();
    advance(close.size() + (sign == '-' || sign == '+' ? 1 : 0));
    if (sign == '-') {
      skip_spaces();
    } else if (sign != '+' && trim && rest().starts_with('\n')) {
      advance(1);
    }
  }

  void comment(size_t opening) {
    const size_t end = source_.find("#}", at_ + opening);
    if (end == std::string::npos) fail("a comment has no end");
    const char before = source_[end - 1];
    const bool sign = end > at_ + opening && (before == '-' || before == '+');
    advance(end - at_ - (sign ? 1 : 0));
    close_tag("#}", true);
  }

  // {% raw %} ... {% endraw %} when it is one.
  bool raw(size_t opening) {
    const auto word = [](std::string_view text, std::string_view wanted) -> std::string_view {
      text = strip_left(text);
      if (!text.starts_with(wanted)) return {};
      text = strip_left(text.substr(wanted.size()));
      return text.starts_with("%}") || text.starts_with("-%}") || text.starts_with("+%}") ? text : std::string_view();
    };
    const auto after = word(rest().substr(opening), "raw");
    if (after.empty()) return false;
    advance(rest().size() - after.size());
    close_tag("%}", false);
    for (size_t at = source_.find("{%", at_); at != std::string::npos; at = source_.find("{%", at + 2)) {
      auto inside = std::string_view(source_).substr(at + 2);
      const char sign = inside.empty() ? 0 : inside.front();
      if (sign == '-' || sign == '+') inside.remove_prefix(1);
      const auto end = word(inside, "endraw");
      if (end.empty()) continue;
      auto body = std::string_view(source_).substr(at_, at - at_);
      if (sign == '-') body = strip_right(body);
      add_text(body);
      advance(rest().size() - end.size());
      close_tag("%}", true);
      return true;
    }
    fail("raw has no endraw");
  }

  // Tokens up to the end of the tag.
  void expression(char close) {
    const std::string end = close == '}' ? "}}" : "%}";
    std::string open;  // brackets that wait for their partner
    for (;;) {
      skip_spaces();
      if (rest().empty()) fail(fmt::format("a tag has no \"{}\"", end));
      const char c = rest().front();
      if (open.empty()) {
        const bool sign = (c == '-' || (c == '+' && close == '%')) && rest().substr(1).starts_with(end);
        if (sign || rest().starts_with(end)) {
          emit(close == '}' ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, "");
          close_tag(end, close == '%');
          return;
        }
      }
      if (is_digit(c)) {
        number();
      } else if (is_name_start(c)) {
        size_t n = 1;
        while (n < rest().size() && is_name(rest()[n])) ++n;
        emit(TokenKind::kName, std::string(rest().substr(0, n)));
        advance(n);
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        operation(open);
      }
    }
  }

  void number() {
    const auto text = rest();
    size_t n = 0;
    const auto digits = [&](auto accepts) {
      while (n < text.size() && (accepts(text[n]) || (text[n] == '_' && n + 1 < text.size() && accepts(text[n + 1])))) {
        ++n;
      }
    };
    bool is_float = false;
    if (text.size() > 2 && text[0] == '0' && std::string_view("xXoObB").find(text[1]) != std::string_view::npos) {
      n = 2;
      digits([](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; });
    } else {
      digits(is_digit);
      // "foo.0.x" has integers between dots; "1.5" needs a digit after the dot.
      const bool after_dot = !tokens_.empty() && tokens_.back().text == ".";
      if (!after_dot && n + 1 < text.size() && text[n] == '.' && is_digit(text[n + 1])) {
        is_float = true;
        ++n;
        digits(is_digit);
      }
      if (!after_dot && n < text.size() && (text[n] == 'e' || text[n] == 'E')) {
        const size_t sign = n + 1 < text.size() && (text[n + 1] == '+' || text[n + 1] == '-') ? 1 : 0;
        if (n + 1 + sign < text.size() && is_digit(text[n + 1 + sign])) {
          is_float = true;
          n += 1 + sign;
          digits(is_digit);
        }
      }
    }
    std::string value(text.substr(0, n));
    std::erase(value, '_');
    emit(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(value));
    advance(n);
  }

  void string(char quote) {
    const auto text = rest();
    size_t n = 1;
    while (n < text.size() && text[n] != quote) n += text[n] == '\\' ? 2 : 1;
    if (n >= text.size()) fail("a string has no end");
    emit(TokenKind::kString, unescape(text.substr(1, n - 1)));
    advance(n + 1);
  }

  // Python's escapes; an unknown one stays as it is.
  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out.push_back(text[i]);
        continue;
      }
      const char c = text[++i];  // the lexer has seen that something follows
      static constexpr std::string_view kFrom = "abfnrtv\\'\"";
      static constexpr std::string_view kTo = "\a\b\f\n\r\t\v\\'\"";
      if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
        out.push_back(kTo[at]);
      } else if (c == '\n') {
        continue;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        append_code_point(hex(text, i, c == 'x' ? 2 : c == 'u' ? 4 : 8), out);
      } else if (c >= '0' && c <= '7') {
        char32_t value = 0;
        size_t n = 0;
        for (; n < 3 && i + n < text.size() && text[i + n] >= '0' && text[i + n] <= '7'; ++n) {
          value = value * 8 + static_cast<char32_t>(text[i + n] - '0');
        }
        i += n - 1;
        append_code_point(value, out);
      } else {
        out.push_back('\\');
        out.push_back(c);
      }
    }
    return out;
  }

  // The code point of `digits` hex digits after text[i]; two escaped surrogates make one. Moves `i` to the last digit.
  char32_t hex(std::string_view text, size_t& i, size_t digits) const {
    const auto read = [&](size_t from) -> char32_t {
      char32_t value = 0;
      if (from + digits > text.size()) fail("an escape in a string is cut off");
      for (const char c : text.substr(from, digits)) {
        if (std::isxdigit(static_cast<unsigned char>(c)) == 0) fail("an escape in a string is not hexadecimal");
        value = value * 16 + static_cast<char32_t>(is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
      }
      return value;
    };
    char32_t value = read(i + 1);
    i += digits;
    if (value >= 0xD800 && value < 0xDC00 && digits == 4 && text.substr(i + 1).starts_with("\\u")) {
      const char32_t low = read(i + 3);
      if (low >= 0xDC00 && low < 0xE000) {
        i += 6;
        return 0x10000 + ((value - 0xD800) << 10) + (low - 0xDC00);
      }
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) fail("an escape in a string is no character");
    return value;
  }

  void operation(std::string& open) {
    static constexpr std::string_view kTwo[] = {"==", "!=", "<=", ">=", "//", "**"};
    const auto text = rest();
    for (const auto two : kTwo) {
      if (!text.starts_with(two)) continue;
      emit(TokenKind::kOperator, std::string(two));
      advance(2);
      return;
    }
    const char c = text.front();
    if (std::string_view("+-*/%~<>=.:|,()[]{};").find(c) == std::string_view::npos) {
      fail(fmt::format("unexpected character '{}'", c));
    }
    if (c == '(' || c == '[' || c == '{') open.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) fail(fmt::format("unexpected '{}'", c));
      open.pop_back();
    }
    emit(TokenKind::kOperator, std::string(1, c));
    advance(1);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  std::string valid;
  if (!is_valid_utf8(source)) {
    append_lossy(source, valid, nullptr);
    source = valid;
  }
  return Lexer(source).run();
}

}  // namespace sluice::tokenizer::jinja
