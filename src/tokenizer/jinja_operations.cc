// Operators, attributes, indices and slices.
#include <cmath>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer::jinja {

namespace {

[[noreturn]] void unsupported(std::string_view name, const Value& left, const Value& right) {
  for (const Value* v : {&left, &right}) {
    if (const auto* u = v->as_undefined()) throw TemplateError{u->why};
  }
  if (name == "+" && left.as_string() != nullptr) {
    throw TemplateError{fmt::format("can only concatenate str (not \"{}\") to str", right.type_name())};
  }
  throw TemplateError{
      fmt::format("unsupported operand types for {}: '{}' and '{}'", name, left.type_name(), right.type_name())};
}

Value integer_operation(std::string_view name, int64_t a, int64_t b) {
  int64_t out = 0;
  bool overflow = false;
  if (name == "+") {
    overflow = __builtin_add_overflow(a, b, &out);
  } else if (name == "-") {
    overflow = __builtin_sub_overflow(a, b, &out);
  } else if (name == "*") {
    overflow = __builtin_mul_overflow(a, b, &out);
  } else if (name == "**") {
    if (b < 0) return std::pow(static_cast<double>(a), static_cast<double>(b));
    out = 1;
    for (int64_t base = a; b > 0 && !overflow; b >>= 1) {
      if ((b & 1) != 0) overflow = __builtin_mul_overflow(out, base, &out);
      if (b > 1) overflow = overflow || __builtin_mul_overflow(base, base, &base);
    }
  } else {
    if (b == 0) throw TemplateError{"division by zero"};
    if (name == "/") return static_cast<double>(a) / static_cast<double>(b);
    if (b == -1) {
      overflow = __builtin_sub_overflow(int64_t{0}, a, &out);
      if (name == "%") return int64_t{0};
    } else {
      // Python rounds towards minus infinity.
      const int64_t quotient = a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
      out = name == "//" ? quotient : a - quotient * b;
    }
  }
  if (overflow) throw TemplateError{"a number is too large"};
  return out;
}

Value float_operation(std::string_view name, double a, double b) {
  if (name == "+") return a + b;
  if (name == "-") return a - b;
  if (name == "*") return a * b;
  if (name == "**") return std::pow(a, b);
  if (b == 0) throw TemplateError{"division by zero"};
  if (name == "/") return a / b;
  if (name == "//") return std::floor(a / b);
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Value repeat(Runtime& runtime, const Value& value, int64_t times) {
  const auto n = static_cast<size_t>(std::max<int64_t>(0, times));
  if (const auto* s = value.as_string()) {
    if (!s->empty() && n > kMaxStringBytes / s->size()) throw TemplateError{"a string is too long"};
    runtime.charge_bytes(s->size() * n);
    std::string out;
    out.reserve(s->size() * n);
    for (size_t i = 0; i < n && !s->empty(); ++i) out += *s;
    return out;
  }
  const auto* list = value.as_list();
  if (!list->items.empty() && n > kMaxWeight / list->items.size()) throw TemplateError{"a list is too long"};
  runtime.charge(list->items.size() * n);
  std::vector<Value> items;
  for (size_t i = 0; i < n && !list->items.empty(); ++i) {
    items.insert(items.end(), list->items.begin(), list->items.end());
  }
  return list->tuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
}

bool is_row(const Value& value) { return value.as_string() != nullptr || value.as_list() != nullptr; }

}  // namespace

Value binary_operation(Runtime& runtime, std::string_view name, const Value& left, const Value& right) {
  if (name == "~") {
    runtime.charge(left.weight() + right.weight());
    std::string out;
    left.append_str(out);
    right.append_str(out);
    runtime.charge_bytes(out.size());
    return out;
  }
  if (const auto* a = left.as_string(), *b = right.as_string(); name == "+" && a != nullptr && b != nullptr) {
    runtime.charge_bytes(a->size() + b->size());
    std::string out;
    out.reserve(a->size() + b->size());
    return out.append(*a).append(*b);
  }
  if (name == "%" && left.as_string() != nullptr) return percent_format(runtime, *left.as_string(), right);
  if (const auto* a = left.as_list(), *b = right.as_list();
      name == "+" && a != nullptr && b != nullptr && a->tuple == b->tuple) {
    runtime.charge(a->items.size() + b->items.size());
    std::vector<Value> items = a->items;
    items.insert(items.end(), b->items.begin(), b->items.end());
    return a->tuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
  }
  if (name == "*" && is_row(left) && right.integral()) return repeat(runtime, left, *right.integral());
  if (name == "*" && is_row(right) && left.integral()) return repeat(runtime, right, *left.integral());
  if (const auto a = left.integral(), b = right.integral(); a && b) return integer_operation(name, *a, *b);
  if (const auto a = left.number(), b = right.number(); a && b) return float_operation(name, *a, *b);
  unsupported(name, left, right);
}

Value get_attribute(const Value& value, std::string_view name) {
  if (const auto* u = value.as_undefined()) throw TemplateError{u->why};
  if (const auto* object = value.as_object()) {
    if (auto found = object->attribute(name)) return *found;
  } else if (auto method = bound_method(value, name)) {
    return *method;
  } else if (const auto* list = value.as_list();
             list != nullptr && list->group && (name == "grouper" || name == "list")) {
    return list->items[name == "list" ? 1 : 0];
  } else if (const auto* dict = value.as_dict()) {
    if (const Value* found = dict->find(name)) return *found;
  }
  return Undefined{fmt::format("'{}' object has no attribute '{}'", value.type_name(), name)};
}

Value get_item(const Value& value, const Value& key) {
  if (const auto* u = value.as_undefined()) throw TemplateError{u->why};
  if (const auto* dict = value.as_dict()) {
    if (const Value* found = dict->find(key)) return *found;
  } else if (const auto i = key.integral(); i && is_row(value)) {
    const auto n = static_cast<int64_t>(value.length());
    const int64_t at = *i < 0 ? *i + n : *i;
    if (at >= 0 && at < n) {
      if (const auto* list = value.as_list()) return list->items[static_cast<size_t>(at)];
      const auto& text = *value.as_string();
      if (is_ascii(text)) return std::string_view(text).substr(static_cast<size_t>(at), 1);
      return code_points(text)[static_cast<size_t>(at)];
    }
    return Undefined{fmt::format("'{}' object has no element {}", value.type_name(), *i)};
  }
  if (const auto* name = key.as_string()) return get_attribute(value, *name);
  return Undefined{fmt::format("'{}' object has no element {}", value.type_name(), key.str())};
}

Value slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (const auto* u = value.as_undefined()) throw TemplateError{u->why};
  if (!is_row(value)) throw TemplateError{fmt::format("'{}' object cannot be sliced", value.type_name())};
  const auto part = [](const Value& v, int64_t otherwise) {
    if (v.is_none()) return otherwise;
    const auto i = v.integral();
    if (!i) throw TemplateError{"slice indices must be integers or None"};
    return *i;
  };
  const int64_t by = part(step, 1);
  if (by == 0) throw TemplateError{"slice step cannot be zero"};
  const auto n = static_cast<int64_t>(value.length());
  // Python's slice.indices().
  const int64_t low = by < 0 ? -1 : 0, high = by < 0 ? n - 1 : n;
  const auto bound = [&](const Value& v, int64_t otherwise) {
    int64_t i = part(v, otherwise);
    if (v.is_none()) return i;
    if (i < 0) i = i < -n ? low : std::max(i + n, low);
    return std::min(i, high);
  };
  const int64_t from = bound(start, by < 0 ? n - 1 : 0);
  const int64_t to = bound(stop, by < 0 ? -1 : n);
  const auto each = [&](auto take) {
    if (by > 0) {
      for (int64_t i = from; i<to; i = by> to - i ? to : i + by) take(static_cast<size_t>(i));
    } else {
      for (int64_t i = from; i > to; i = by < to - i ? to : i + by) take(static_cast<size_t>(i));
    }
  };
  if (const auto* list = value.as_list()) {
    std::vector<Value> items;
    each([&](size_t i) { items.push_back(list->items[i]); });
    runtime.charge(1 + items.size() / 4);
    return list->tuple ? Value::tuple(std::move(items)) : Value::list(std::move(items));
  }
  const auto& text = *value.as_string();
  runtime.charge_bytes(text.size());
  std::string out;
  if (is_ascii(text)) {
    each([&](size_t i) { out.push_back(text[i]); });
  } else {
    const auto characters = code_points(text);
    each([&](size_t i) { out += characters[i]; });
  }
  return out;
}

}  // namespace sluice::tokenizer::jinja
