// Cuts a template into text and tokens, with Jinja2's white space control (trim_blocks and lstrip_blocks on).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sluice::tokenizer::jinja {

enum class TokenKind {
  kText,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,   // escapes resolved
  kInteger,  // decimal digits, or with 0x, 0o, 0b
  kFloat,
  kOperator,  // "+", "==", "(", ...
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// Throws TemplateError. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace sluice::tokenizer::jinja
