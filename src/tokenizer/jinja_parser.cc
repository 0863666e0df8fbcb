// The grammar of Jinja2 3.1 (jinja2/parser.py) without template inheritance and imports.
#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_lexer.h"

namespace sluice::tokenizer::jinja {

namespace {

using Kind = Expression::Kind;

// These bound the parser's and the interpreter's own stack.
constexpr int kMaxNesting = 150;    // brackets and blocks
constexpr int kMaxTreeDepth = 400;  // operators in a row: "a ~ b ~ c" is a tree of depth 3

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Body run() {
    Body body = block({});
    return body;
  }

 private:
  struct Nesting {
    explicit Nesting(Parser& parser) : depth(parser.depth_) {
      if (++depth > kMaxNesting) parser.fail("the template is nested too deep");
    }
    ~Nesting() { --depth; }
    int& depth;
  };

  const Token& now() const { return tokens_[at_]; }
  const Token& after() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() {
    Token token = now();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  [[noreturn]] void fail(std::string message) const { throw TemplateError{std::move(message), now().line}; }

  bool is(TokenKind kind, std::string_view text) const { return now().kind == kind && now().text == text; }
  bool is_operator(std::string_view text) const { return is(TokenKind::kOperator, text); }
  bool is_word(std::string_view text) const { return is(TokenKind::kName, text); }
  bool skip_operator(std::string_view text) {
    if (!is_operator(text)) return false;
    take();
    return true;
  }
  bool skip_word(std::string_view text) {
    if (!is_word(text)) return false;
    take();
    return true;
  }
  std::string describe(const Token& token) const {
    switch (token.kind) {
      case TokenKind::kEnd:
        return "end of template";
      case TokenKind::kBlockEnd:
        return "end of statement block";
      case TokenKind::kVariableEnd:
        return "end of print statement";
      default:
        return "'" + token.text + "'";
    }
  }
  void expect_operator(std::string_view text) {
    if (!skip_operator(text)) fail(fmt::format("expected '{}', got {}", text, describe(now())));
  }
  void expect_word(std::string_view text) {
    if (!skip_word(text)) fail(fmt::format("expected '{}', got {}", text, describe(now())));
  }
  std::string expect_name() {
    if (now().kind != TokenKind::kName) fail(fmt::format("expected a name, got {}", describe(now())));
    return take().text;
  }
  void expect_block_end() {
    if (now().kind != TokenKind::kBlockEnd) {
      fail(fmt::format("expected end of statement block, got {}", describe(now())));
    }
    take();
  }

  // --- statements

  // Up to a tag whose name is one of `ends`; that tag is left with its name as the current token.
  Body block(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    const int opened = now().line;
    Body body;
    for (;;) {
      if (now().kind == TokenKind::kEnd) {
        if (ends.size() == 0) return body;
        throw TemplateError{fmt::format("unexpected end of template: no '{}' for the tag here", *(ends.end() - 1)),
                            opened};
      }
      if (now().kind == TokenKind::kText) {
        auto text = make(Statement::Kind::kText);
        text->text = take().text;
        body.push_back(std::move(text));
      } else if (now().kind == TokenKind::kVariableBegin) {
        auto print = make(Statement::Kind::kPrint);
        take();
        print->value = tuple(true, false);
        if (now().kind != TokenKind::kVariableEnd) {
          fail(fmt::format("expected end of print statement, got {}", describe(now())));
        }
        take();
        body.push_back(std::move(print));
      } else {
        take();  // the tag's beginning
        if (now().kind != TokenKind::kName) fail(fmt::format("expected a tag's name, got {}", describe(now())));
        if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
        body.push_back(statement());
      }
    }
  }

  std::unique_ptr<Statement> make(Statement::Kind kind) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = now().line;
    return statement;
  }

  // Body of a tag, up to and with its end tag.
  Body body_until(std::string_view end) {
    expect_block_end();
    Body body = block({end});
    take();
    expect_block_end();
    return body;
  }

  std::unique_ptr<Statement> statement() {
    const std::string name = now().text;
    if (name == "if") return if_statement();
    if (name == "for") return for_statement();
    if (name == "set") return set_statement();
    if (name == "macro") return macro_statement();
    if (name == "call") return call_statement();
    if (name == "filter") {
      auto node = make(Statement::Kind::kFilter);
      take();
      node->value = block_filters(true);
      node->body = body_until("endfilter");
      return node;
    }
    if (name == "with") return with_statement();
    if (name == "generation") {  // marks what the assistant said, for training; renders as its body
      auto node = make(Statement::Kind::kScope);
      take();
      node->body = body_until("endgeneration");
      return node;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail(fmt::format("'{}' outside of a loop", name));
      auto node = make(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
      take();
      expect_block_end();
      return node;
    }
    fail(fmt::format("unknown tag '{}'", name));
  }

  std::unique_ptr<Statement> if_statement() {
    auto node = make(Statement::Kind::kIf);
    take();
    for (;;) {
      auto condition = tuple(false, false);
      expect_block_end();
      auto body = block({"elif", "else", "endif"});
      node->branches.emplace_back(std::move(condition), std::move(body));
      if (skip_word("elif")) continue;
      if (skip_word("else")) {
        expect_block_end();
        node->branches.emplace_back(nullptr, block({"endif"}));
      }
      expect_word("endif");
      expect_block_end();
      return node;
    }
  }

  std::unique_ptr<Statement> for_statement() {
    auto node = make(Statement::Kind::kFor);
    take();
    node->target = target(false);
    expect_word("in");
    node->value = tuple(false, false);
    if (skip_word("if")) node->condition = expression();
    if (is_word("recursive")) fail("recursive loops are not supported");
    expect_block_end();
    ++loops_;
    node->body = block({"endfor", "else"});
    --loops_;
    if (skip_word("else")) {
      expect_block_end();
      node->otherwise = block({"endfor"});
    }
    expect_word("endfor");
    expect_block_end();
    return node;
  }

  std::unique_ptr<Statement> set_statement() {
    auto node = make(Statement::Kind::kSet);
    take();
    node->target = target(true);
    if (skip_operator("=")) {
      node->value = tuple(true, false);
      expect_block_end();
      return node;
    }
    node->kind = Statement::Kind::kSetBlock;
    if (node->target.tuple) fail("a set block assigns one name");
    if (is_operator("|")) node->value = block_filters(false);
    node->body = body_until("endset");
    return node;
  }

  // "|a|b" over the text of a block; the first bar may be left out.
  ExpressionPtr block_filters(bool bare) {
    auto text = make_expression(Kind::kName);
    text->name = kBlockText;
    if (bare) text = one_filter(std::move(text));
    return filters(std::move(text));
  }

  void signature(Statement& node) {
    expect_operator("(");
    while (!is_operator(")")) {
      if (!node.target.names.empty()) expect_operator(",");
      if (is_operator(")")) break;
      node.target.names.push_back(expect_name());
      if (skip_operator("=")) {
        node.defaults.push_back(expression());
      } else if (!node.defaults.empty()) {
        fail("a parameter without default follows one with a default");
      }
    }
    expect_operator(")");
  }

  std::unique_ptr<Statement> macro_statement() {
    auto node = make(Statement::Kind::kMacro);
    take();
    node->text = expect_name();
    signature(*node);
    node->body = function_body("endmacro");
    return node;
  }

  Body function_body(std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    Body body = body_until(end);
    loops_ = loops;
    return body;
  }

  std::unique_ptr<Statement> call_statement() {
    auto node = make(Statement::Kind::kCall);
    take();
    if (is_operator("(")) signature(*node);
    node->value = expression();
    if (node->value->kind != Kind::kCall) fail("expected a call");
    node->body = function_body("endcall");
    return node;
  }

  std::unique_ptr<Statement> with_statement() {
    auto node = make(Statement::Kind::kWith);
    take();
    while (now().kind != TokenKind::kBlockEnd) {
      if (!node->assignments.empty()) expect_operator(",");
      auto name = target(false);
      expect_operator("=");
      node->assignments.emplace_back(std::move(name), expression());
    }
    node->body = body_until("endwith");
    return node;
  }

  Target target(bool with_namespace) {
    Target target;
    const bool brackets = skip_operator("(");
    for (;;) {
      const std::string name = expect_name();
      for (const std::string_view reserved :
           {"true", "false", "none", "True", "False", "None", "not", "and", "or", "if", "else", "is", "in"}) {
        if (name == reserved) fail(fmt::format("cannot assign to '{}'", name));
      }
      target.names.push_back(name);
      if (with_namespace && target.names.size() == 1 && skip_operator(".")) {
        target.attribute = expect_name();
        break;
      }
      if (!skip_operator(",")) break;
      target.tuple = true;
      if (now().kind != TokenKind::kName || is_word("in")) break;
    }
    if (brackets) expect_operator(")");
    return target;
  }

  // --- expressions

  ExpressionPtr make_expression(Kind kind) const {
    auto node = std::make_unique<Expression>();
    node->kind = kind;
    node->line = now().line;
    return node;
  }
  ExpressionPtr make_constant(Value value) const {
    auto node = make_expression(Kind::kConstant);
    node->constant = std::move(value);
    return node;
  }
  template <class... Children>
  ExpressionPtr combine(Kind kind, std::string name, Children... children) const {
    auto node = make_expression(kind);
    node->name = std::move(name);
    (node->children.push_back(std::move(children)), ...);
    node->line = node->children.front()->line;
    for (const auto& child : node->children) node->depth = std::max(node->depth, child->depth + 1);
    if (node->depth > kMaxTreeDepth) fail("an expression is nested too deep");
    return node;
  }

  ExpressionPtr expression() {
    const Nesting nesting(*this);
    auto value = disjunction();
    while (skip_word("if")) {
      auto condition = disjunction();
      auto node = combine(Kind::kConditional, "", std::move(condition), std::move(value));
      if (skip_word("else")) node->children.push_back(expression());
      value = std::move(node);
    }
    return value;
  }

  // Expressions with commas between them make a tuple. `conditional`: "a if b else c" may be one of them.
  ExpressionPtr tuple(bool conditional, bool in_brackets) {
    auto first = make_expression(Kind::kTuple);
    bool comma = false;
    while (!tuple_ends()) {
      first->children.push_back(conditional ? expression() : disjunction());
      comma = is_operator(",");
      if (!comma) break;
      take();
    }
    if (first->children.size() == 1 && !comma) return std::move(first->children.front());
    if (first->children.empty() && !in_brackets) fail(fmt::format("expected an expression, got {}", describe(now())));
    return first;
  }
  bool tuple_ends() const {
    return now().kind == TokenKind::kVariableEnd || now().kind == TokenKind::kBlockEnd || is_operator(")");
  }

  ExpressionPtr disjunction() {
    auto left = conjunction();
    while (skip_word("or")) left = combine(Kind::kBinary, "or", std::move(left), conjunction());
    return left;
  }
  ExpressionPtr conjunction() {
    auto left = negation();
    while (skip_word("and")) left = combine(Kind::kBinary, "and", std::move(left), negation());
    return left;
  }
  ExpressionPtr negation() {
    if (!is_word("not")) return comparison();
    const Nesting nesting(*this);
    take();
    return combine(Kind::kUnary, "not", negation());
  }
  ExpressionPtr comparison() {
    auto left = sum();
    ExpressionPtr node;
    for (;;) {
      std::string name;
      if (now().kind == TokenKind::kOperator && (is_operator("==") || is_operator("!=") || is_operator("<") ||
                                                 is_operator("<=") || is_operator(">") || is_operator(">="))) {
        name = take().text;
      } else if (skip_word("in")) {
        name = "in";
      } else if (is_word("not") && after().kind == TokenKind::kName && after().text == "in") {
        take();
        take();
        name = "notin";
      } else {
        break;
      }
      if (!node) node = combine(Kind::kCompare, "", std::move(left));
      node->name += (node->name.empty() ? "" : " ") + name;
      node->children.push_back(sum());
    }
    return node ? std::move(node) : std::move(left);
  }
  // Operators of one precedence, applied from the left.
  template <class Next>
  ExpressionPtr chain(std::initializer_list<std::string_view> operators, Next next) {
    auto left = next();
    while (now().kind == TokenKind::kOperator &&
           std::find(operators.begin(), operators.end(), now().text) != operators.end()) {
      auto name = take().text;
      left = combine(Kind::kBinary, std::move(name), std::move(left), next());
    }
    return left;
  }
  ExpressionPtr sum() {
    return chain({"+", "-"}, [this] { return concatenation(); });
  }
  ExpressionPtr concatenation() {
    return chain({"~"}, [this] { return product(); });
  }
  ExpressionPtr product() {
    return chain({"*", "/", "//", "%"}, [this] { return power(); });
  }
  ExpressionPtr power() {
    return chain({"**"}, [this] { return unary(true); });
  }
  ExpressionPtr unary(bool with_filters) {
    ExpressionPtr node;
    if (is_operator("-") || is_operator("+")) {
      const Nesting nesting(*this);
      auto name = take().text;
      node = combine(Kind::kUnary, std::move(name), unary(false));
    } else {
      node = postfix(primary());
    }
    return with_filters ? filters(std::move(node)) : std::move(node);
  }

  ExpressionPtr primary() {
    const Nesting nesting(*this);
    switch (now().kind) {
      case TokenKind::kName:
        return name();
      case TokenKind::kString: {
        auto node = make_constant(Value());
        std::string text;
        while (now().kind == TokenKind::kString) text += take().text;
        node->constant = std::move(text);
        return node;
      }
      case TokenKind::kInteger:
        return integer();
      case TokenKind::kFloat: {
        auto node = make_constant(std::strtod(now().text.c_str(), nullptr));
        take();
        return node;
      }
      default:
        break;
    }
    if (skip_operator("(")) {
      auto node = tuple(true, true);
      expect_operator(")");
      return node;
    }
    if (is_operator("[")) {
      auto node = make_expression(Kind::kList);
      take();
      while (!is_operator("]")) {
        if (!node->children.empty()) expect_operator(",");
        if (is_operator("]")) break;
        node->children.push_back(expression());
      }
      expect_operator("]");
      return node;
    }
    if (is_operator("{")) {
      auto node = make_expression(Kind::kDict);
      take();
      while (!is_operator("}")) {
        if (!node->children.empty()) expect_operator(",");
        if (is_operator("}")) break;
        node->children.push_back(expression());
        expect_operator(":");
        node->children.push_back(expression());
      }
      expect_operator("}");
      return node;
    }
    fail(fmt::format("unexpected {}", describe(now())));
  }

  ExpressionPtr name() {
    auto node = make_expression(Kind::kName);
    node->name = take().text;
    const auto constant = [&](Value value) {
      node->kind = Kind::kConstant;
      node->constant = std::move(value);
    };
    if (node->name == "true" || node->name == "True") constant(true);
    if (node->name == "false" || node->name == "False") constant(false);
    if (node->name == "none" || node->name == "None") constant(None{});
    return node;
  }

  ExpressionPtr integer() {
    std::string_view digits = now().text;
    int base = 10;
    if (digits.size() > 2 && digits[0] == '0' && !(digits[1] >= '0' && digits[1] <= '9')) {
      const char kind = static_cast<char>(digits[1] | 0x20);
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
      digits.remove_prefix(2);
    }
    int64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (error != std::errc() || end != digits.data() + digits.size()) fail(fmt::format("bad number {}", now().text));
    auto node = make_constant(value);
    take();
    return node;
  }

  ExpressionPtr postfix(ExpressionPtr node) {
    for (;;) {
      if (is_operator(".")) {
        take();
        if (now().kind == TokenKind::kInteger) {
          auto index = integer();
          node = combine(Kind::kSubscript, "", std::move(node), std::move(index));
          continue;
        }
        auto attribute = combine(Kind::kAttribute, "", std::move(node));
        attribute->name = expect_name();
        node = std::move(attribute);
      } else if (is_operator("[")) {
        node = subscript(std::move(node));
      } else if (is_operator("(")) {
        node = call(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr value) {
    auto node = combine(Kind::kSubscript, "", std::move(value));
    expect_operator("[");
    const auto part = [&]() -> ExpressionPtr { return is_operator(":") || is_operator("]") ? nullptr : expression(); };
    if (is_operator("]")) fail("expected an index, got ']'");
    auto first = part();
    if (!is_operator(":")) {
      if (is_operator(",")) fail("an index is one value");
      node->children.push_back(std::move(first));
    } else {
      node->kind = Kind::kSlice;
      node->children.push_back(std::move(first));
      take();
      node->children.push_back(part());
      node->children.push_back(skip_operator(":") ? part() : nullptr);
    }
    expect_operator("]");
    return node;
  }

  ExpressionPtr call(ExpressionPtr callee) {
    auto node = combine(Kind::kCall, "", std::move(callee));
    arguments(*node);
    return node;
  }

  void arguments(Expression& call) {
    expect_operator("(");
    bool first = true;
    while (!is_operator(")")) {
      if (!first) expect_operator(",");
      if (is_operator(")")) break;
      first = false;
      if (is_operator("*") || is_operator("**")) fail("'*' and '**' in calls are not supported");
      if (now().kind == TokenKind::kName && after().kind == TokenKind::kOperator && after().text == "=") {
        std::string key = take().text;
        take();
        call.named.emplace_back(std::move(key), expression());
      } else {
        if (!call.named.empty()) fail("a positional argument follows a named one");
        call.children.push_back(expression());
      }
    }
    expect_operator(")");
  }

  ExpressionPtr filters(ExpressionPtr node) {
    for (;;) {
      if (skip_operator("|")) {
        node = one_filter(std::move(node));
      } else if (is_word("is")) {
        take();
        node = test(std::move(node));
      } else if (is_operator("(")) {
        node = call(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExpressionPtr one_filter(ExpressionPtr value) {
    auto node = combine(Kind::kFilter, "", std::move(value));
    node->name = expect_name();
    if (is_operator("(")) arguments(*node);
    return node;
  }

  ExpressionPtr test(ExpressionPtr value) {
    const bool negated = skip_word("not");
    auto node = combine(Kind::kTest, "", std::move(value));
    node->name = expect_name();
    if (is_operator("(")) {
      arguments(*node);
    } else if (test_argument_follows()) {
      node->children.push_back(postfix(primary()));
    }
    return negated ? combine(Kind::kUnary, "not", std::move(node)) : std::move(node);
  }
  bool test_argument_follows() const {
    switch (now().kind) {
      case TokenKind::kName:
        return !is_word("else") && !is_word("or") && !is_word("and") && !is_word("if") && !is_word("is") &&
               !is_word("in") && !is_word("not") && !is_word("recursive");
      case TokenKind::kString:
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        return true;
      case TokenKind::kOperator:
        return is_operator("[") || is_operator("{");
      default:
        return false;
    }
  }

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace

Body parse_template(std::string_view source) { return Parser(source).run(); }

}  // namespace sluice::tokenizer::jinja
