// Values of the template language, with Python's behaviour where templates can see it: how they print, compare, count
// as true and become JSON.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace sluice::tokenizer::jinja {

// What is thrown inside the interpreter; ChatTemplate turns it into an Error. `line` 0: whoever knows it fills it in.
struct TemplateError {
  std::string message;
  int line = 0;
};

class Value;
struct Dict;
struct List;
class Object;

struct Undefined {
  std::string why;  // "'x' is undefined"
};
struct None {};
// A whole number above INT64_MAX, as JSON may have it: it keeps its digits, and counts as a float in arithmetic.
struct BigInteger {
  uint64_t n;
};

// How deep lists, mappings and bound methods may be nested: values are printed and destroyed recursively.
inline constexpr uint32_t kMaxDepth = 256;
// How heavy a value may be: shared parts count as often as they are met, as they do when the value is printed.
inline constexpr uint64_t kMaxWeight = 8'000'000;
inline constexpr size_t kMaxStringBytes = size_t{64} << 20;

// Immutable, but for what an Object does. Copying is cheap: strings and containers are shared.
class Value {
 public:
  using String = std::shared_ptr<const std::string>;
  using ListRef = std::shared_ptr<const List>;
  using DictRef = std::shared_ptr<const Dict>;
  using ObjectRef = std::shared_ptr<Object>;

  Value() : data_(Undefined{}) {}
  Value(Undefined u) : data_(std::move(u)) {}                                         // NOLINT
  Value(None n) : data_(n) {}                                                         // NOLINT
  Value(bool b) : data_(b) {}                                                         // NOLINT
  Value(int64_t i) : data_(i) {}                                                      // NOLINT
  Value(BigInteger i) : data_(i) {}                                                   // NOLINT
  Value(double d) : data_(d) {}                                                       // NOLINT
  Value(std::string s) : data_(std::make_shared<const std::string>(std::move(s))) {}  // NOLINT
  Value(std::string_view s) : data_(std::make_shared<const std::string>(s)) {}        // NOLINT
  Value(const char* s) : data_(std::make_shared<const std::string>(s)) {}             // NOLINT
  Value(ListRef l) : data_(std::move(l)) {}                                           // NOLINT
  Value(DictRef d) : data_(std::move(d)) {}                                           // NOLINT
  Value(ObjectRef o) : data_(std::move(o)) {}                                         // NOLINT
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  // The tuple (key, items) that groupby makes, with the attributes "grouper" and "list".
  static Value group(Value key, std::vector<Value> items);
  static Value dict(std::vector<std::pair<Value, Value>> items);
  static Value integer(size_t n) { return Value(static_cast<int64_t>(n)); }
  static Value from_json(const nlohmann::ordered_json& json, uint32_t depth = 0);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  const bool* as_bool() const { return std::get_if<bool>(&data_); }
  const int64_t* as_int() const { return std::get_if<int64_t>(&data_); }
  const BigInteger* as_big() const { return std::get_if<BigInteger>(&data_); }
  const double* as_float() const { return std::get_if<double>(&data_); }
  const std::string* as_string() const {
    const auto* s = std::get_if<String>(&data_);
    return s ? s->get() : nullptr;
  }
  const List* as_list() const {
    const auto* l = std::get_if<ListRef>(&data_);
    return l ? l->get() : nullptr;
  }
  const Dict* as_dict() const {
    const auto* d = std::get_if<DictRef>(&data_);
    return d ? d->get() : nullptr;
  }
  Object* as_object() const {
    const auto* o = std::get_if<ObjectRef>(&data_);
    return o ? o->get() : nullptr;
  }
  const Undefined* as_undefined() const { return std::get_if<Undefined>(&data_); }
  // A whole number that fits, true and false counting as 1 and 0.
  std::optional<int64_t> integral() const;
  // The same for any number.
  std::optional<double> number() const;

  bool truthy() const;
  uint32_t depth() const;
  // Work of walking over it: one per part, and one per 16 bytes of text.
  uint64_t weight() const;
  // Python's name of the type: "str", "list", ...
  std::string_view type_name() const;
  // Python's str() and repr().
  std::string str() const;
  void append_str(std::string& out) const;
  void append_repr(std::string& out) const;

  // Python's ==; of objects and undefined values, identity of kind.
  bool equals(const Value& other) const;
  bool same_as(const Value& other) const;
  // Python's <. Throws for types without an order.
  bool less(const Value& other) const;
  // The items of an iteration: of a list, the keys of a mapping, the characters of a string. Throws for others.
  std::vector<Value> iterate() const;
  size_t length() const;
  // `item in *this`.
  bool contains(const Value& item) const;

 private:
  std::variant<Undefined, None, bool, int64_t, BigInteger, double, String, ListRef, DictRef, ObjectRef> data_;
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
  uint32_t depth = 1;
  uint64_t weight = 1;
  bool group = false;  // a tuple of groupby
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // keys are distinct, in order of insertion
  uint32_t depth = 1;
  uint64_t weight = 1;
  std::unordered_map<std::string_view, size_t> index;  // of string keys, when there are many

  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The arguments in the order of `names`, unset where not given. Throws for those that no name takes.
  std::vector<std::optional<Value>> bind(std::string_view function,
                                         std::initializer_list<std::string_view> names) const;
};

// What builtins may ask of the interpreter that runs them.
class Runtime {
 public:
  virtual ~Runtime() = default;
  // Counts work; throws when the render has had its share.
  virtual void charge(size_t steps) = 0;
  virtual Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments) = 0;
  virtual bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) = 0;
  virtual int64_t unix_nanos() const = 0;
  // Keeps an object alive to the end of the render, when it is emptied: objects may refer to each other in a circle.
  virtual void adopt(std::shared_ptr<Object> object) = 0;

  // Work of making that many bytes.
  void charge_bytes(size_t bytes) {
    if (bytes > kMaxStringBytes) throw TemplateError{"a string is too long"};
    charge(1 + bytes / 16);
  }
};

// Something with behaviour: a namespace, a loop, a macro, a bound method.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string_view type_name() const = 0;
  virtual std::optional<Value> attribute(std::string_view /*name*/) const { return std::nullopt; }
  virtual bool set_attribute(std::string_view /*name*/, Value /*value*/) { return false; }
  virtual bool callable() const { return false; }
  virtual Value call(Runtime& runtime, const Arguments& arguments);
  virtual uint32_t depth() const { return 1; }
  virtual void clear() {}
};

// A function with state of its own, or none.
class Function final : public Object {
 public:
  using Body = std::function<Value(Runtime&, const Arguments&)>;
  Function(Body body, uint32_t depth) : body_(std::move(body)), depth_(depth) {}
  static Value make(Body body, uint32_t depth = 1);

  std::string_view type_name() const override { return "function"; }
  bool callable() const override { return true; }
  Value call(Runtime& runtime, const Arguments& arguments) override { return body_(runtime, arguments); }
  uint32_t depth() const override { return depth_; }

 private:
  Body body_;
  uint32_t depth_;
};

// Python's str.isspace for one code point.
bool is_space(char32_t c);
std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);

// Python's repr of a float: the shortest digits that read back the same.
std::string float_repr(double d);

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
// Python's json.dumps.
void append_json(const Value& value, const JsonStyle& style, std::string& out, size_t level = 0);

// The characters of a valid UTF-8 text.
std::vector<std::string_view> code_points(std::string_view text);

}  // namespace sluice::tokenizer::jinja
