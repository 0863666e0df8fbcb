#include "tokenizer/jinja_value.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "tokenizer/utf8.h"

namespace sluice::tokenizer::jinja {

namespace {

constexpr size_t kIndexFrom = 12;  // entries from which a mapping has an index

template <class Items>
uint32_t depth_over(const Items& items) {
  uint32_t depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  if (depth >= kMaxDepth) throw TemplateError{fmt::format("values are nested more than {} deep", kMaxDepth)};
  return depth + 1;
}

uint64_t weight_over(const std::vector<Value>& items) {
  uint64_t weight = 1;
  for (const Value& item : items) weight += item.weight();
  if (weight > kMaxWeight) throw TemplateError{"a value is too large"};
  return weight;
}

// Python's str.isprintable for one code point.
bool is_printable(char32_t c) {
  const auto code_point = static_cast<UChar32>(c);
  return c == ' ' || (U_GET_GC_MASK(code_point) & (U_GC_C_MASK | U_GC_Z_MASK)) == 0;
}

void append_string_repr(std::string_view s, std::string& out) {
  const char quote = s.find('\'') != std::string_view::npos && s.find('"') == std::string_view::npos ? '"' : '\'';
  out.push_back(quote);
  while (!s.empty()) {
    const auto step = utf8_step(s);
    const char32_t c = step.code_point;
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out.append(s.substr(0, step.length));
    } else {
      const auto n = static_cast<uint32_t>(c);
      out += n < 0x100     ? fmt::format("\\x{:02x}", n)
             : n < 0x10000 ? fmt::format("\\u{:04x}", n)
                           : fmt::format("\\U{:08x}", n);
    }
    s.remove_prefix(step.length);
  }
  out.push_back(quote);
}

void append_json_string(std::string_view s, bool ensure_ascii, std::string& out) {
  out.push_back('"');
  while (!s.empty()) {
    const auto step = utf8_step(s);
    const auto c = static_cast<uint32_t>(step.code_point);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000 && c != 0x7F)) {
          out += fmt::format("\\u{:04x}", c);
        } else if (ensure_ascii && c >= 0x10000) {
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + ((c - 0x10000) & 0x3FF));
        } else {
          out.append(s.substr(0, step.length));
        }
    }
    s.remove_prefix(step.length);
  }
  out.push_back('"');
}

std::string json_float(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d > 0 ? "Infinity" : "-Infinity";
  return float_repr(d);
}

std::string json_key(const Value& key) {
  if (const auto* s = key.as_string()) return *s;
  if (const auto* b = key.as_bool()) return *b ? "true" : "false";
  if (key.is_none()) return "null";
  if (key.as_int() != nullptr || key.as_big() != nullptr) return key.str();
  if (const auto* d = key.as_float()) return json_float(*d);
  throw TemplateError{fmt::format("keys must be str, int, float, bool or None, not {}", key.type_name())};
}

}  // namespace

Value Value::list(std::vector<Value> items) {
  const auto depth = depth_over(items);
  const auto weight = weight_over(items);
  return Value(std::make_shared<const List>(List{std::move(items), false, depth, weight}));
}

Value Value::tuple(std::vector<Value> items) {
  const auto depth = depth_over(items);
  const auto weight = weight_over(items);
  return Value(std::make_shared<const List>(List{std::move(items), true, depth, weight}));
}

Value Value::group(Value key, std::vector<Value> items) {
  std::vector<Value> both;
  both.push_back(std::move(key));
  both.push_back(list(std::move(items)));
  const auto depth = depth_over(both);
  const auto weight = weight_over(both);
  return Value(std::make_shared<const List>(List{std::move(both), true, depth, weight, /*group=*/true}));
}

Value Value::dict(std::vector<std::pair<Value, Value>> items) {
  auto dict = std::make_shared<Dict>();
  const bool indexed = items.size() >= kIndexFrom;
  dict->items.reserve(items.size());
  for (auto& [key, value] : items) {
    if (key.as_list() != nullptr || key.as_dict() != nullptr) {
      throw TemplateError{fmt::format("a {} cannot be a key", key.type_name())};
    }
    dict->depth = std::max(dict->depth, value.depth() + 1);
    dict->weight += key.weight() + value.weight();
    if (const Value* there = dict->find(key)) {
      const_cast<Value&>(*there) = std::move(value);  // still ours: nobody else has seen the mapping yet
      continue;
    }
    dict->items.emplace_back(std::move(key), std::move(value));
    const auto* text = dict->items.back().first.as_string();
    if (indexed && text != nullptr) dict->index.emplace(*text, dict->items.size() - 1);
  }
  if (dict->depth > kMaxDepth) throw TemplateError{fmt::format("values are nested more than {} deep", kMaxDepth)};
  if (dict->weight > kMaxWeight) throw TemplateError{"a value is too large"};
  return Value(DictRef(std::move(dict)));
}

Value Value::from_json(const nlohmann::ordered_json& json, uint32_t depth) {
  if (depth > kMaxDepth) throw TemplateError{fmt::format("the request is nested more than {} deep", kMaxDepth)};
  using Kind = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Kind::null:
      return None{};
    case Kind::boolean:
      return json.get<bool>();
    case Kind::number_integer:
      return json.get<int64_t>();
    case Kind::number_unsigned: {
      const auto n = json.get<uint64_t>();
      return n <= INT64_MAX ? Value(static_cast<int64_t>(n)) : Value(BigInteger{n});
    }
    case Kind::number_float:
      return json.get<double>();
    case Kind::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (is_valid_utf8(text)) return text;
      std::string valid;
      append_lossy(text, valid, nullptr);
      return valid;
    }
    case Kind::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item, depth + 1));
      return list(std::move(items));
    }
    case Kind::object: {
      std::vector<std::pair<Value, Value>> items;
      items.reserve(json.size());
      for (const auto& [key, value] : json.items()) items.emplace_back(Value(key), from_json(value, depth + 1));
      return dict(std::move(items));
    }
    case Kind::binary:
    case Kind::discarded:
      break;
  }
  return Undefined{"a value without a JSON form"};
}

std::optional<int64_t> Value::integral() const {
  if (const auto* i = as_int()) return *i;
  if (const auto* b = as_bool()) return *b ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const auto* d = as_float()) return *d;
  if (const auto* big = as_big()) return static_cast<double>(big->n);
  if (const auto i = integral()) return static_cast<double>(*i);
  return std::nullopt;
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (const auto* b = as_bool()) return *b;
  if (const auto* i = as_int()) return *i != 0;
  if (as_big() != nullptr) return true;
  if (const auto* d = as_float()) return *d != 0;
  if (const auto* s = as_string()) return !s->empty();
  if (const auto* l = as_list()) return !l->items.empty();
  if (const auto* d = as_dict()) return !d->items.empty();
  return true;
}

uint32_t Value::depth() const {
  if (const auto* l = as_list()) return l->depth;
  if (const auto* d = as_dict()) return d->depth;
  if (const auto* o = as_object()) return o->depth();
  return 0;
}

std::string_view Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (as_bool() != nullptr) return "bool";
  if (as_int() != nullptr || as_big() != nullptr) return "int";
  if (as_float() != nullptr) return "float";
  if (as_string() != nullptr) return "str";
  if (const auto* l = as_list()) return l->tuple ? "tuple" : "list";
  if (as_dict() != nullptr) return "dict";
  return as_object()->type_name();
}

uint64_t Value::weight() const {
  if (const auto* s = as_string()) return 1 + s->size() / 16;
  if (const auto* l = as_list()) return l->weight;
  if (const auto* d = as_dict()) return d->weight;
  return 1;
}

std::string Value::str() const {
  std::string out;
  append_str(out);
  return out;
}

void Value::append_str(std::string& out) const {
  if (is_undefined()) return;
  if (const auto* s = as_string()) {
    out += *s;
  } else {
    append_repr(out);
  }
}

void Value::append_repr(std::string& out) const {
  if (is_undefined()) {
    out += "Undefined";
  } else if (is_none()) {
    out += "None";
  } else if (const auto* b = as_bool()) {
    out += *b ? "True" : "False";
  } else if (const auto* i = as_int()) {
    out += std::to_string(*i);
  } else if (const auto* big = as_big()) {
    out += std::to_string(big->n);
  } else if (const auto* d = as_float()) {
    out += float_repr(*d);
  } else if (const auto* s = as_string()) {
    append_string_repr(*s, out);
  } else if (const auto* l = as_list()) {
    out.push_back(l->tuple ? '(' : '[');
    for (size_t n = 0; n < l->items.size(); ++n) {
      if (n > 0) out += ", ";
      l->items[n].append_repr(out);
    }
    if (l->tuple && l->items.size() == 1) out.push_back(',');
    out.push_back(l->tuple ? ')' : ']');
  } else if (const auto* dict = as_dict()) {
    out.push_back('{');
    for (size_t n = 0; n < dict->items.size(); ++n) {
      if (n > 0) out += ", ";
      dict->items[n].first.append_repr(out);
      out += ": ";
      dict->items[n].second.append_repr(out);
    }
    out.push_back('}');
  } else {
    out += fmt::format("<{}>", type_name());
  }
}

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (const auto* s = std::get_if<String>(&data_)) return *s == std::get<String>(other.data_);
  if (const auto* l = std::get_if<ListRef>(&data_)) return *l == std::get<ListRef>(other.data_);
  if (const auto* d = std::get_if<DictRef>(&data_)) return *d == std::get<DictRef>(other.data_);
  return equals(other);
}

bool Value::equals(const Value& other) const {
  if (const auto* a = as_big(), *b = other.as_big(); a != nullptr && b != nullptr) return a->n == b->n;
  if (const auto a = number(), b = other.number(); a && b) {
    const auto i = integral(), j = other.integral();
    return i && j ? *i == *j : *a == *b;
  }
  if (data_.index() != other.data_.index()) return false;
  if (const auto* s = as_string()) return *s == *other.as_string();
  if (const auto* l = as_list()) {
    const auto* m = other.as_list();
    return l == m ||
           (l->tuple == m->tuple && std::equal(l->items.begin(), l->items.end(), m->items.begin(), m->items.end(),
                                               [](const Value& a, const Value& b) { return a.equals(b); }));
  }
  if (const auto* d = as_dict()) {
    const auto* e = other.as_dict();
    if (d == e) return true;
    if (d->items.size() != e->items.size()) return false;
    return std::all_of(d->items.begin(), d->items.end(), [&](const auto& item) {
      const Value* there = e->find(item.first);
      return there != nullptr && there->equals(item.second);
    });
  }
  if (const auto* o = as_object()) return o == other.as_object();
  return true;  // both undefined or both none
}

bool Value::less(const Value& other) const {
  if (const auto* a = as_big(), *b = other.as_big(); a != nullptr && b != nullptr) return a->n < b->n;
  if (const auto a = number(), b = other.number(); a && b) {
    const auto i = integral(), j = other.integral();
    return i && j ? *i < *j : *a < *b;
  }
  if (as_string() != nullptr && other.as_string() != nullptr) return *as_string() < *other.as_string();
  if (const auto* l = as_list(), *m = other.as_list(); l != nullptr && m != nullptr && l->tuple == m->tuple) {
    for (size_t i = 0; i < std::min(l->items.size(), m->items.size()); ++i) {
      if (!l->items[i].equals(m->items[i])) return l->items[i].less(m->items[i]);
    }
    return l->items.size() < m->items.size();
  }
  for (const Value* v : {this, &other}) {
    if (const auto* u = v->as_undefined()) throw TemplateError{u->why};
  }
  throw TemplateError{fmt::format("'<' not supported between {} and {}", type_name(), other.type_name())};
}

std::vector<Value> Value::iterate() const {
  if (is_undefined()) return {};
  if (const auto* l = as_list()) return l->items;
  std::vector<Value> out;
  if (const auto* d = as_dict()) {
    for (const auto& item : d->items) out.push_back(item.first);
    return out;
  }
  if (const auto* s = as_string()) {
    for (const auto c : code_points(*s)) out.emplace_back(c);
    return out;
  }
  throw TemplateError{fmt::format("'{}' object is not iterable", type_name())};
}

size_t Value::length() const {
  if (is_undefined()) return 0;
  if (const auto* s = as_string()) return count_code_points(*s);
  if (const auto* l = as_list()) return l->items.size();
  if (const auto* d = as_dict()) return d->items.size();
  throw TemplateError{fmt::format("object of type '{}' has no len()", type_name())};
}

bool Value::contains(const Value& item) const {
  if (const auto* s = as_string()) {
    if (item.as_string() == nullptr) {
      throw TemplateError{fmt::format("'in <string>' requires string as left operand, not {}", item.type_name())};
    }
    return s->find(*item.as_string()) != std::string::npos;
  }
  if (const auto* d = as_dict()) return d->find(item) != nullptr;
  if (const auto* l = as_list()) {
    return std::any_of(l->items.begin(), l->items.end(), [&](const Value& v) { return v.equals(item); });
  }
  if (is_undefined()) return false;
  throw TemplateError{fmt::format("argument of type '{}' is not iterable", type_name())};
}

const Value* Dict::find(std::string_view key) const {
  if (!index.empty()) {
    const auto at = index.find(key);
    return at == index.end() ? nullptr : &items[at->second].second;
  }
  for (const auto& item : items) {
    if (const auto* text = item.first.as_string(); text != nullptr && *text == key) return &item.second;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  if (const auto* text = key.as_string()) return find(std::string_view(*text));
  for (const auto& item : items) {
    if (item.first.equals(key)) return &item.second;
  }
  return nullptr;
}

std::vector<std::optional<Value>> Arguments::bind(std::string_view function,
                                                  std::initializer_list<std::string_view> names) const {
  if (positional.size() > names.size()) {
    throw TemplateError{
        fmt::format("{}() takes at most {} arguments ({} given)", function, names.size(), positional.size())};
  }
  std::vector<std::optional<Value>> out(names.size());
  std::copy(positional.begin(), positional.end(), out.begin());
  for (const auto& [name, value] : named) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) throw TemplateError{fmt::format("{}() has no argument '{}'", function, name)};
    auto& slot = out[static_cast<size_t>(at - names.begin())];
    if (slot) throw TemplateError{fmt::format("{}() has two values for argument '{}'", function, name)};
    slot = value;
  }
  return out;
}

Value Object::call(Runtime& /*runtime*/, const Arguments& /*arguments*/) {
  throw TemplateError{fmt::format("'{}' object is not callable", type_name())};
}

Value Function::make(Body body, uint32_t depth) {
  if (depth > kMaxDepth) throw TemplateError{fmt::format("values are nested more than {} deep", kMaxDepth)};
  return Value(Value::ObjectRef(std::make_shared<Function>(std::move(body), depth)));
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view strip_left(std::string_view text) {
  while (!text.empty()) {
    const auto step = utf8_step(text);
    if (!is_space(step.code_point)) break;
    text.remove_prefix(step.length);
  }
  return text;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_space(utf8_step(text.substr(at)).code_point)) break;
    text = text.substr(0, at);
  }
  return text;
}

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d > 0 ? "inf" : "-inf";
  char buffer[64];
  // d.ddddde±XX with the fewest digits; Python writes exponents below -4 and from 16 on.
  const auto scientific = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(scientific.ptr - buffer));
  const size_t e = text.find('e');
  int exponent = 0;
  const size_t digits = e + 1 + (text[e + 1] == '+');
  std::from_chars(text.data() + digits, text.data() + text.size(), exponent);
  if (exponent < -4 || exponent >= 16) return std::string(text);
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::fixed);
  std::string out(buffer, fixed.ptr);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void append_json(const Value& value, const JsonStyle& style, std::string& out, size_t level) {
  const auto new_line = [&](size_t at) {
    if (!style.indent) return;
    out.push_back('\n');
    for (size_t i = 0; i < at; ++i) out += *style.indent;
  };
  if (value.is_none()) {
    out += "null";
  } else if (const auto* b = value.as_bool()) {
    out += *b ? "true" : "false";
  } else if (const auto* i = value.as_int()) {
    out += std::to_string(*i);
  } else if (const auto* big = value.as_big()) {
    out += std::to_string(big->n);
  } else if (const auto* d = value.as_float()) {
    out += json_float(*d);
  } else if (const auto* s = value.as_string()) {
    append_json_string(*s, style.ensure_ascii, out);
  } else if (const auto* list = value.as_list()) {
    out.push_back('[');
    for (size_t n = 0; n < list->items.size(); ++n) {
      if (n > 0) out += style.item_separator;
      new_line(level + 1);
      append_json(list->items[n], style, out, level + 1);
    }
    if (!list->items.empty()) new_line(level);
    out.push_back(']');
  } else if (const auto* dict = value.as_dict()) {
    std::vector<std::pair<std::string, const Value*>> entries;
    entries.reserve(dict->items.size());
    for (const auto& item : dict->items) entries.emplace_back(json_key(item.first), &item.second);
    if (style.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& c) { return a.first < c.first; });
    }
    out.push_back('{');
    for (size_t n = 0; n < entries.size(); ++n) {
      if (n > 0) out += style.item_separator;
      new_line(level + 1);
      append_json_string(entries[n].first, style.ensure_ascii, out);
      out += style.key_separator;
      append_json(*entries[n].second, style, out, level + 1);
    }
    if (!entries.empty()) new_line(level);
    out.push_back('}');
  } else {
    throw TemplateError{fmt::format("Object of type {} is not JSON serializable", value.type_name())};
  }
}

std::vector<std::string_view> code_points(std::string_view text) {
  std::vector<std::string_view> out;
  out.reserve(text.size());
  while (!text.empty()) {
    const auto length = utf8_step(text).length;
    out.push_back(text.substr(0, length));
    text.remove_prefix(length);
  }
  return out;
}

}  // namespace sluice::tokenizer::jinja
