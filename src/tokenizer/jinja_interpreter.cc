#include "tokenizer/jinja_interpreter.h"

#include <algorithm>

#include "tokenizer/jinja_builtins.h"

namespace sluice::tokenizer::jinja {

namespace {

using Kind = Expression::Kind;

// Names bound in a block. Inner scopes see the outer ones; assignments stay where they are made.
struct Scope {
  std::shared_ptr<Scope> outer;
  std::vector<std::pair<std::string, Value>> names;

  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope != nullptr; scope = scope->outer.get()) {
      for (const auto& entry : scope->names) {
        if (entry.first == name) return &entry.second;
      }
    }
    return nullptr;
  }
  void set(std::string_view name, Value value) {
    for (auto& entry : names) {
      if (entry.first == name) {
        entry.second = std::move(value);
        return;
      }
    }
    names.emplace_back(name, std::move(value));
  }
};
using ScopePtr = std::shared_ptr<Scope>;

// `loop` inside a for statement.
class Loop final : public Object {
 public:
  Loop(std::vector<Value> items, int64_t depth) : items_(std::move(items)), depth_(depth) {}

  void move_to(size_t at) { at_ = at; }
  const std::vector<Value>& items() const { return items_; }

  std::string_view type_name() const override { return "LoopContext"; }
  std::optional<Value> attribute(std::string_view name) const override {
    const size_t n = items_.size();
    if (name == "index") return Value::integer(at_ + 1);
    if (name == "index0") return Value::integer(at_);
    if (name == "revindex") return Value::integer(n - at_);
    if (name == "revindex0") return Value::integer(n - at_ - 1);
    if (name == "first") return Value(at_ == 0);
    if (name == "last") return Value(at_ + 1 == n);
    if (name == "length") return Value::integer(n);
    if (name == "depth") return Value(depth_);
    if (name == "depth0") return Value(depth_ - 1);
    if (name == "previtem") return at_ > 0 ? items_[at_ - 1] : Value(Undefined{"there is no previous item"});
    if (name == "nextitem") return at_ + 1 < n ? items_[at_ + 1] : Value(Undefined{"there is no next item"});
    if (name == "cycle") {
      return Function::make([at = at_](Runtime&, const Arguments& arguments) -> Value {
        if (arguments.positional.empty()) throw TemplateError{"no items for cycling given"};
        return arguments.positional[at % arguments.positional.size()];
      });
    }
    if (name == "changed") {
      return Function::make([this](Runtime& runtime, const Arguments& arguments) -> Value {
        runtime.charge(arguments.positional.size());
        Value now = Value::list(arguments.positional);
        const bool changed = !last_ || !last_->equals(now);
        last_ = std::move(now);
        return changed;
      });
    }
    return std::nullopt;
  }
  void clear() override {
    items_.clear();
    last_.reset();
  }

 private:
  std::vector<Value> items_;
  int64_t depth_;
  size_t at_ = 0;
  mutable std::optional<Value> last_;  // what changed() saw
};

class Interpreter;

// A macro, or the body of a call block. It sees the scope in which it was defined, as long as that lives.
class Macro final : public Object {
 public:
  Macro(Interpreter& interpreter, const Statement& node, std::string name, const ScopePtr& scope)
      : interpreter_(interpreter), node_(node), name_(std::move(name)), scope_(scope) {}

  std::string_view type_name() const override { return "macro"; }
  bool callable() const override { return true; }
  std::optional<Value> attribute(std::string_view name) const override {
    if (name == "name") return Value(name_);
    return std::nullopt;
  }
  Value call(Runtime& runtime, const Arguments& arguments) override;

 private:
  Interpreter& interpreter_;
  const Statement& node_;
  std::string name_;
  std::weak_ptr<Scope> scope_;
};

enum class Flow { kNext, kBreak, kContinue };

class Interpreter final : public Runtime {
 public:
  Interpreter(const Value& context, int64_t unix_nanos, const RenderLimits& limits)
      : limits_(limits), unix_nanos_(unix_nanos), scope_(std::make_shared<Scope>()) {
    for (const auto& [key, value] : context.as_dict()->items) globals_.emplace_back(*key.as_string(), value);
  }
  ~Interpreter() override {
    for (const auto& object : adopted_) object->clear();
  }

  std::string run(const Body& body) {
    try {
      execute(body);
    } catch (TemplateError& error) {
      if (error.line == 0) error.line = line_;
      throw;
    }
    return std::move(*out_);
  }

  // --- Runtime
  void charge(size_t steps) override {
    if (steps > limits_.steps - steps_) throw TemplateError{"the template takes too many steps"};
    steps_ += steps;
  }
  Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) override {
    return apply_builtin_filter(*this, name, value, arguments);
  }
  bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) override {
    return apply_builtin_test(*this, name, value, arguments);
  }
  int64_t unix_nanos() const override { return unix_nanos_; }
  void adopt(std::shared_ptr<Object> object) override {
    charge(64);  // it stays to the end of the render
    adopted_.push_back(std::move(object));
  }

  // What `work` gives when it runs in `scope`.
  template <class Work>
  auto inside(ScopePtr scope, Work work) {
    struct Restore {
      Interpreter& interpreter;
      ScopePtr scope;
      ~Restore() { interpreter.scope_ = std::move(scope); }
    };
    const Restore restore{*this, std::exchange(scope_, std::move(scope))};
    return work();
  }

  // The text that `body` writes in `scope`.
  std::string capture(const Body& body, ScopePtr scope) {
    const Deeper deeper(*this);
    std::string text;
    struct Restore {
      Interpreter& interpreter;
      std::string* out;
      int64_t loops;
      ~Restore() {
        interpreter.out_ = out;
        interpreter.loop_depth_ = loops;
      }
    };
    const Restore restore{*this, std::exchange(out_, &text), std::exchange(loop_depth_, 0)};
    inside(std::move(scope), [&] { execute(body); });
    return text;
  }
  std::string capture_inside(const Body& body) { return capture(body, std::make_shared<Scope>(Scope{scope_, {}})); }

  Value evaluate(const Expression& e) {
    const Deeper deeper(*this);
    charge(1);
    switch (e.kind) {
      case Kind::kConstant:
        return e.constant;
      case Kind::kName:
        return lookup(e.name);
      case Kind::kList:
        return Value::list(evaluate_all(e.children));
      case Kind::kTuple:
        return Value::tuple(evaluate_all(e.children));
      case Kind::kDict: {
        std::vector<std::pair<Value, Value>> items;
        for (size_t i = 0; i < e.children.size(); i += 2) {
          Value key = evaluate(*e.children[i]);
          items.emplace_back(std::move(key), evaluate(*e.children[i + 1]));
        }
        line_ = e.line;
        return Value::dict(std::move(items));
      }
      case Kind::kUnary:
        return unary(e);
      case Kind::kBinary:
        return binary(e);
      case Kind::kCompare:
        return compare(e);
      case Kind::kConditional: {
        if (evaluate(*e.children[0]).truthy()) return evaluate(*e.children[1]);
        if (e.children.size() > 2) return evaluate(*e.children[2]);
        return Undefined{"the inline if-expression was false and has no else"};
      }
      case Kind::kAttribute: {
        const Value object = evaluate(*e.children[0]);
        line_ = e.line;
        return get_attribute(object, e.name);
      }
      case Kind::kSubscript: {
        const Value object = evaluate(*e.children[0]);
        const Value key = evaluate(*e.children[1]);
        line_ = e.line;
        return get_item(object, key);
      }
      case Kind::kSlice: {
        const auto part = [&](size_t i) { return e.children[i] ? evaluate(*e.children[i]) : Value(None{}); };
        const Value object = evaluate(*e.children[0]);
        const Value start = part(1), stop = part(2), step = part(3);
        line_ = e.line;
        return slice(*this, object, start, stop, step);
      }
      case Kind::kCall:
        return call(e, std::nullopt);
      case Kind::kFilter: {
        const Value value = evaluate(*e.children[0]);
        const Arguments arguments = arguments_of(e);
        line_ = e.line;
        return apply_filter(e.name, value, arguments);
      }
      case Kind::kTest: {
        const Value value = evaluate(*e.children[0]);
        const Arguments arguments = arguments_of(e);
        line_ = e.line;
        return apply_test(e.name, value, arguments);
      }
    }
    throw TemplateError{"unknown expression"};
  }

 private:
  // Counts how deep evaluation is nested; the machine's stack is finite.
  struct Deeper {
    explicit Deeper(Interpreter& interpreter) : depth(interpreter.depth_) {
      if (depth >= kMaxEvaluationDepth) throw TemplateError{"the template recurses too deep"};
      ++depth;
    }
    ~Deeper() { --depth; }
    int& depth;
  };
  static constexpr int kMaxEvaluationDepth = 600;

  Value lookup(const std::string& name) {
    if (const Value* value = scope_->find(name)) return *value;
    for (const auto& entry : globals_) {
      if (entry.first == name) return entry.second;
    }
    if (auto function = global_function(name)) return *function;
    return Undefined{fmt::format("'{}' is undefined", name)};
  }

  std::vector<Value> evaluate_all(const std::vector<ExpressionPtr>& expressions) {
    std::vector<Value> values;
    values.reserve(expressions.size());
    for (const auto& e : expressions) values.push_back(evaluate(*e));
    return values;
  }

  Arguments arguments_of(const Expression& e) {
    Arguments arguments;
    for (size_t i = 1; i < e.children.size(); ++i) arguments.positional.push_back(evaluate(*e.children[i]));
    for (const auto& [name, value] : e.named) arguments.named.emplace_back(name, evaluate(*value));
    return arguments;
  }

  // A call; `caller` goes along as a named argument of its own.
  Value call(const Expression& e, std::optional<Value> caller) {
    const Value function = evaluate(*e.children[0]);
    Arguments arguments = arguments_of(e);
    if (caller) arguments.named.emplace_back("caller", *std::move(caller));
    line_ = e.line;
    if (const auto* u = function.as_undefined()) throw TemplateError{u->why};
    Object* const object = function.as_object();
    if (object == nullptr || !object->callable()) {
      throw TemplateError{fmt::format("'{}' object is not callable", function.type_name())};
    }
    return object->call(*this, arguments);
  }

  Value unary(const Expression& e) {
    const Value value = evaluate(*e.children[0]);
    if (e.name == "not") return !value.truthy();
    line_ = e.line;
    if (const auto* u = value.as_undefined()) throw TemplateError{u->why};
    if (const auto i = value.integral()) {
      if (*i == INT64_MIN) throw TemplateError{"a number is too large"};
      return e.name == "-" ? -*i : *i;
    }
    if (const auto d = value.number()) return e.name == "-" ? -*d : *d;
    throw TemplateError{fmt::format("bad operand type for unary {}: '{}'", e.name, value.type_name())};
  }

  Value binary(const Expression& e) {
    Value left = evaluate(*e.children[0]);
    if (e.name == "and") return left.truthy() ? evaluate(*e.children[1]) : left;
    if (e.name == "or") return left.truthy() ? left : evaluate(*e.children[1]);
    const Value right = evaluate(*e.children[1]);
    line_ = e.line;
    return binary_operation(*this, e.name, left, right);
  }

  Value compare(const Expression& e) {
    Value left = evaluate(*e.children[0]);
    std::string_view names = e.name;
    for (size_t i = 1; i < e.children.size(); ++i) {
      const auto name = names.substr(0, names.find(' '));
      names.remove_prefix(std::min(names.size(), name.size() + 1));
      Value right = evaluate(*e.children[i]);
      line_ = e.line;
      if (!holds(name, left, right)) return false;
      left = std::move(right);
    }
    return true;
  }

  bool holds(std::string_view name, const Value& left, const Value& right) {
    charge(left.weight() + right.weight());
    if (name == "==") return left.equals(right);
    if (name == "!=") return !left.equals(right);
    if (name == "<") return left.less(right);
    if (name == ">") return right.less(left);
    if (name == "<=") return left.less(right) || left.equals(right);
    if (name == ">=") return right.less(left) || left.equals(right);
    return right.contains(left) == (name == "in");
  }

  void write(std::string_view text) {
    charge_bytes(text.size());
    if (out_->size() + text.size() > limits_.output) throw TemplateError{"the template writes too much"};
    out_->append(text);
  }

  Flow execute(const Body& body) {
    for (const auto& statement : body) {
      const Flow flow = execute(*statement);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  // `body` in a scope of its own.
  Flow execute_scoped(const Body& body, std::vector<std::pair<std::string, Value>> names) {
    const ScopePtr saved = scope_;
    scope_ = std::make_shared<Scope>(Scope{saved, std::move(names)});
    Flow flow;
    try {
      flow = execute(body);
    } catch (...) {
      scope_ = saved;
      throw;
    }
    scope_ = saved;
    return flow;
  }

  Flow execute(const Statement& s) {
    const Deeper deeper(*this);
    charge(1);
    line_ = s.line;
    switch (s.kind) {
      case Statement::Kind::kText:
        write(s.text);
        break;
      case Statement::Kind::kPrint: {
        const Value value = evaluate(*s.value);
        line_ = s.line;
        if (const auto* text = value.as_string()) {
          write(*text);
        } else {
          charge(value.weight());
          write(value.str());
        }
        break;
      }
      case Statement::Kind::kIf:
        for (const auto& [condition, body] : s.branches) {
          if (!condition || evaluate(*condition).truthy()) return execute(body);
        }
        break;
      case Statement::Kind::kFor:
        return loop(s);
      case Statement::Kind::kSet:
        assign(s.target, evaluate(*s.value), *scope_);
        break;
      case Statement::Kind::kSetBlock: {
        Value text(capture_inside(s.body));
        if (s.value) text = filtered(*s.value, std::move(text));
        assign(s.target, std::move(text), *scope_);
        break;
      }
      case Statement::Kind::kMacro:
        scope_->set(s.text, Value(Value::ObjectRef(std::make_shared<Macro>(*this, s, s.text, scope_))));
        break;
      case Statement::Kind::kCall:
        write(call(*s.value, Value(Value::ObjectRef(std::make_shared<Macro>(*this, s, "caller", scope_)))).str());
        break;
      case Statement::Kind::kFilter:
        write(filtered(*s.value, Value(capture_inside(s.body))).str());
        break;
      case Statement::Kind::kWith: {
        Scope inner;
        for (const auto& [target, value] : s.assignments) assign(target, evaluate(*value), inner);
        return execute_scoped(s.body, std::move(inner.names));
      }
      case Statement::Kind::kScope:
        return execute_scoped(s.body, {});
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  Value filtered(const Expression& filters, Value text) {
    const ScopePtr saved = scope_;
    scope_ = std::make_shared<Scope>(Scope{saved, {{std::string(kBlockText), std::move(text)}}});
    Value value;
    try {
      value = evaluate(filters);
    } catch (...) {
      scope_ = saved;
      throw;
    }
    scope_ = saved;
    return value;
  }

  void assign(const Target& target, Value value, Scope& scope) {
    if (!target.attribute.empty()) {
      const Value name_space = lookup(target.names.front());
      Object* const object = name_space.as_object();
      if (object == nullptr || !object->set_attribute(target.attribute, std::move(value))) {
        throw TemplateError{"cannot assign attribute on non-namespace object"};
      }
      return;
    }
    if (!target.tuple) {
      scope.set(target.names.front(), std::move(value));
      return;
    }
    if (const auto* u = value.as_undefined()) throw TemplateError{u->why};
    auto items = walk(*this, value);
    if (items.size() != target.names.size()) {
      throw TemplateError{fmt::format("cannot unpack {} values into {} names", items.size(), target.names.size())};
    }
    for (size_t i = 0; i < items.size(); ++i) scope.set(target.names[i], std::move(items[i]));
  }

  Flow loop(const Statement& s) {
    std::vector<Value> items = walk(*this, evaluate(*s.value));
    if (s.condition) {
      std::vector<Value> kept;
      for (auto& item : items) {
        const ScopePtr saved = scope_;
        scope_ = std::make_shared<Scope>(Scope{saved, {}});
        bool keep;
        try {
          assign(s.target, item, *scope_);
          keep = evaluate(*s.condition).truthy();
        } catch (...) {
          scope_ = saved;
          throw;
        }
        scope_ = saved;
        if (keep) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    if (items.empty()) return execute_scoped(s.otherwise, {});

    auto state = std::make_shared<Loop>(std::move(items), ++loop_depth_);
    adopt(state);
    Flow flow = Flow::kNext;
    for (size_t i = 0; i < state->items().size() && flow != Flow::kBreak; ++i) {
      charge(1);
      state->move_to(i);
      Scope names;
      assign(s.target, state->items()[i], names);
      names.set("loop", Value(Value::ObjectRef(state)));
      flow = execute_scoped(s.body, std::move(names.names));
    }
    --loop_depth_;
    // Nobody kept the loop: it need not stay.
    if (state.use_count() == 2 && adopted_.back() == state) adopted_.pop_back();
    return Flow::kNext;
  }

  const RenderLimits limits_;
  const int64_t unix_nanos_;
  size_t steps_ = 0;
  int depth_ = 0;
  int line_ = 1;
  int64_t loop_depth_ = 0;
  std::vector<std::pair<std::string, Value>> globals_;
  ScopePtr scope_;
  std::vector<std::shared_ptr<Object>> adopted_;
  std::string main_output_;
  std::string* out_ = &main_output_;
};

Value Macro::call(Runtime& runtime, const Arguments& arguments) {
  const ScopePtr scope = scope_.lock();
  if (!scope) throw TemplateError{fmt::format("macro '{}' is called outside of the block that defines it", name_)};
  const auto& parameters = node_.target.names;
  const auto inner = std::make_shared<Scope>(Scope{scope, {}});
  auto& names = inner->names;
  std::vector<Value> more;
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    if (i < parameters.size()) {
      names.emplace_back(parameters[i], arguments.positional[i]);
    } else {
      more.push_back(arguments.positional[i]);
    }
  }
  std::vector<std::pair<Value, Value>> more_named;
  for (const auto& [name, value] : arguments.named) {
    const bool known = std::find(parameters.begin(), parameters.end(), name) != parameters.end();
    const bool given = std::any_of(names.begin(), names.end(), [&](const auto& n) { return n.first == name; });
    if (known && given) throw TemplateError{fmt::format("macro '{}' has two values for '{}'", name_, name)};
    if (known || name == "caller") {
      names.emplace_back(name, value);
    } else {
      more_named.emplace_back(Value(name), value);
    }
  }
  const size_t first_default = parameters.size() - node_.defaults.size();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (std::any_of(names.begin(), names.end(), [&](const auto& n) { return n.first == parameters[i]; })) continue;
    // A default may name the parameters before it.
    Value value =
        i >= first_default
            ? interpreter_.inside(inner, [&] { return interpreter_.evaluate(*node_.defaults[i - first_default]); })
            : Value(Undefined{fmt::format("parameter '{}' was not provided", parameters[i])});
    names.emplace_back(parameters[i], std::move(value));
  }
  names.emplace_back("varargs", Value::tuple(std::move(more)));
  names.emplace_back("kwargs", Value::dict(std::move(more_named)));
  std::string text = interpreter_.capture(node_.body, inner);
  runtime.charge_bytes(text.size());
  return Value(std::move(text));
}

}  // namespace

std::string render_template(const Body& body, const Value& context, int64_t unix_nanos, const RenderLimits& limits) {
  return Interpreter(context, unix_nanos, limits).run(body);
}

}  // namespace sluice::tokenizer::jinja
