// Syntax trees of templates.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/jinja_value.h"

namespace sluice::tokenizer::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<std::unique_ptr<Statement>>;

// One node of an expression. `name`, `children` and `named` mean what the kind says.
struct Expression {
  enum class Kind {
    kConstant,     // constant
    kName,         // name
    kList,         // children
    kTuple,        // children
    kDict,         // children: key, value, key, value, ...
    kUnary,        // name "-", "+" or "not"; one child
    kBinary,       // name "+", "~", "and", ...; two children
    kCompare,      // name: the operators, joined by a blank; children: the operands, one more
    kConditional,  // children: condition, value, and perhaps the other value
    kAttribute,    // child . name
    kSubscript,    // child [ child ]
    kSlice,        // child [ start : stop : step ]; null for what is left out
    kCall,         // first child is called; the others are positional arguments, `named` the rest
    kFilter,       // name; first child is the value; arguments as of a call
    kTest,         // likewise
  };
  Kind kind;
  int line;
  int depth = 1;  // of the tree below
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> children;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
};

// What an assignment, a loop or a macro binds: one name, several, or an attribute of a namespace.
struct Target {
  std::vector<std::string> names;
  bool tuple = false;
  std::string attribute;  // of the one name, when not empty
};

struct Statement {
  enum class Kind {
    kText,      // text
    kPrint,     // value
    kIf,        // branches; a branch without condition is the else
    kFor,       // target, value, condition (perhaps null), body, otherwise
    kSet,       // target, value
    kSetBlock,  // target, body, and value: the filters over "" (perhaps null)
    kMacro,     // text: its name; target: parameters; defaults of the last of them; body
    kCall,      // value: the call; target, defaults and body: of the caller
    kFilter,    // value: the filters over ""; body
    kWith,      // assignments; body
    kScope,     // body, nothing else
    kBreak,
    kContinue,
  };
  Kind kind;
  int line;
  std::string text;
  Target target;
  ExpressionPtr value;
  ExpressionPtr condition;
  std::vector<std::pair<ExpressionPtr, Body>> branches;
  std::vector<ExpressionPtr> defaults;
  std::vector<std::pair<Target, ExpressionPtr>> assignments;
  Body body;
  Body otherwise;
};

// Throws TemplateError.
Body parse_template(std::string_view source);

// The child in which a filter block puts its text.
inline constexpr std::string_view kBlockText = "\x01 block";

}  // namespace sluice::tokenizer::jinja
