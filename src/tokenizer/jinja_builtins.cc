// Filters, tests and global functions, as in Jinja2 3.1 (jinja2/filters.py, tests.py, defaults.py) and, for tojson,
// raise_exception and strftime_now, as in transformers (utils/chat_template_utils.py).
#include "tokenizer/jinja_builtins.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <map>
#include <set>

#include "tokenizer/utf8.h"

namespace sluice::tokenizer::jinja {

namespace {

using Filter = Value (*)(Runtime&, const Value&, const Arguments&);
using Test = bool (*)(Runtime&, const Value&, const Arguments&);

[[noreturn]] void fail_undefined(const Value& value) { throw TemplateError{value.as_undefined()->why}; }

Value made(Runtime& runtime, std::string text) {
  runtime.charge_bytes(text.size());
  return text;
}

Value call_method(Runtime& runtime, const Value& value, std::string_view name, const Arguments& arguments) {
  if (value.is_undefined()) return bound_method(Value(""), name)->as_object()->call(runtime, arguments);
  const Value text = value.as_string() != nullptr ? value : Value(value.str());
  return bound_method(text, name)->as_object()->call(runtime, arguments);
}

// item.a.b for "a.b", item[0] for 0.
Value attribute_path(const Value& item, const Value& path) {
  if (path.as_string() == nullptr) return get_item(item, path);
  Value value = item;
  std::string_view rest = *path.as_string();
  while (true) {
    const auto name = rest.substr(0, rest.find('.'));
    int64_t index = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
    if (!name.empty() && error == std::errc() && end == name.data() + name.size()) {
      value = get_item(value, Value(index));
    } else {
      value = get_item(value, Value(name));
    }
    if (name.size() == rest.size()) return value;
    rest.remove_prefix(name.size() + 1);
  }
}

// What sort, unique, min, max, groupby and dictsort compare.
Value sort_key(Value value, bool case_sensitive) {
  if (!case_sensitive && value.as_string() != nullptr) return lower(*value.as_string());
  return value;
}

void sort_by_key(Runtime& runtime, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  for (const auto& item : keyed) runtime.charge(item.first.weight() * 16);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? b.first.less(a.first) : a.first.less(b.first);
  });
}

std::vector<std::pair<Value, Value>> keyed_items(Runtime& runtime, const Value& value, bool case_sensitive,
                                                 const std::optional<Value>& attribute) {
  std::vector<std::pair<Value, Value>> keyed;
  for (auto& item : walk(runtime, value)) {
    Value key = sort_key(attribute && !attribute->is_none() ? attribute_path(item, *attribute) : item, case_sensitive);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  return keyed;
}

bool flag(const std::optional<Value>& value, bool otherwise = false) { return value ? value->truthy() : otherwise; }

int64_t count_of(const std::optional<Value>& value, int64_t otherwise, std::string_view function) {
  if (!value) return otherwise;
  if (const auto i = value->integral()) return *i;
  throw TemplateError{fmt::format("{} needs an integer, not {}", function, value->type_name())};
}

Value to_json(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag(bound[0]);
  style.sort_keys = flag(bound[3]);
  if (bound[1] && !bound[1]->is_none()) {
    if (const auto* text = bound[1]->as_string()) {
      if (text->size() > 64) throw TemplateError{"tojson: indent is too wide"};
      style.indent = *text;
    } else {
      const auto width = std::clamp<int64_t>(count_of(bound[1], 0, "tojson"), 0, 64);
      style.indent = std::string(static_cast<size_t>(width), ' ');
    }
    style.item_separator = ",";
  }
  if (bound[2] && !bound[2]->is_none()) {
    const auto pair = bound[2]->iterate();
    if (pair.size() != 2 || pair[0].as_string() == nullptr || pair[1].as_string() == nullptr) {
      throw TemplateError{"tojson: separators are two strings"};
    }
    if (pair[0].as_string()->size() + pair[1].as_string()->size() > 64)
      throw TemplateError{"tojson: separators are too long"};
    style.item_separator = *pair[0].as_string();
    style.key_separator = *pair[1].as_string();
  }
  std::string out;
  append_json(value, style, out);
  return made(runtime, std::move(out));
}

Value default_value(Runtime&, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("default", {"default_value", "boolean"});
  if (value.is_undefined() || (flag(bound[1]) && !value.truthy())) return bound[0].value_or(Value(""));
  return value;
}

Value join_filter(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("join", {"d", "attribute"});
  const std::string separator = bound[0] ? bound[0]->str() : "";
  std::string out;
  bool first = true;
  for (const auto& item : walk(runtime, value)) {
    if (!std::exchange(first, false)) out += separator;
    const size_t before = out.size();
    (bound[1] ? attribute_path(item, *bound[1]) : item).append_str(out);
    runtime.charge_bytes(out.size() - before);
  }
  return out;
}

Value map_filter(Runtime& runtime, const Value& value, const Arguments& arguments) {
  std::vector<Value> out;
  const auto items = walk(runtime, value);
  if (arguments.positional.empty()) {
    const auto bound = arguments.bind("map", {"attribute", "default"});
    if (!bound[0]) throw TemplateError{"map needs a filter's name or an attribute"};
    for (const auto& item : items) {
      Value found = attribute_path(item, *bound[0]);
      out.push_back(found.is_undefined() && bound[1] ? *bound[1] : std::move(found));
    }
    return Value::list(std::move(out));
  }
  Arguments rest = arguments;
  const Value name = rest.positional.front();
  rest.positional.erase(rest.positional.begin());
  for (const auto& item : items) out.push_back(runtime.apply_filter(name.str(), item, rest));
  return Value::list(std::move(out));
}

// select and reject, with an attribute of the items or without.
Value select_filter(Runtime& runtime, const Value& value, const Arguments& arguments, bool by_attribute, bool keep) {
  Arguments rest = arguments;
  Value attribute;
  if (by_attribute) {
    if (rest.positional.empty()) throw TemplateError{"selectattr needs an attribute's name"};
    attribute = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
  }
  std::string test;
  if (!rest.positional.empty()) {
    test = rest.positional.front().str();
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<Value> out;
  for (auto& item : walk(runtime, value)) {
    const Value examined = by_attribute ? attribute_path(item, attribute) : item;
    const bool passes = test.empty() ? examined.truthy() : runtime.apply_test(test, examined, rest);
    if (passes == keep) out.push_back(std::move(item));
  }
  return Value::list(std::move(out));
}

// The text of a number as std::from_chars() takes it.
std::string_view number_text(std::string_view text) {
  text = strip_right(strip_left(text));
  if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
  return text;
}

Value to_int(Runtime&, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("int", {"default", "base"});
  const Value otherwise = bound[0].value_or(Value(int64_t{0}));
  if (const auto i = value.integral()) return *i;
  if (value.as_big() != nullptr) return value;
  if (const auto* d = value.as_float()) return std::abs(*d) < 9e18 ? Value(static_cast<int64_t>(*d)) : otherwise;
  if (value.as_string() == nullptr) return otherwise;
  std::string_view text = number_text(*value.as_string());
  const auto base = static_cast<int>(std::clamp<int64_t>(count_of(bound[1], 10, "int"), 2, 36));
  const char mark = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : '\0';
  if (mark != '\0' && text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == mark) text.remove_prefix(2);
  int64_t out = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out, base);
  if (!text.empty() && error == std::errc() && end == text.data() + text.size()) return out;
  double d = 0;
  const auto [float_end, float_error] = std::from_chars(text.data(), text.data() + text.size(), d);
  const bool whole = !text.empty() && float_error == std::errc() && float_end == text.data() + text.size();
  return whole && std::abs(d) < 9e18 ? Value(static_cast<int64_t>(d)) : otherwise;
}

Value to_float(Runtime&, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("float", {"default"});
  const Value otherwise = bound[0].value_or(Value(0.0));
  if (const auto d = value.number()) return *d;
  if (value.as_string() == nullptr) return otherwise;
  const std::string_view text = number_text(*value.as_string());
  double d = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), d);
  return !text.empty() && error == std::errc() && end == text.data() + text.size() ? Value(d) : otherwise;
}

Value round_filter(Runtime&, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("round", {"precision", "method"});
  const auto number = value.number();
  if (!number) throw TemplateError{fmt::format("round needs a number, not {}", value.type_name())};
  const double scale = std::pow(10.0, static_cast<double>(count_of(bound[0], 0, "round")));
  const std::string method = bound[1] ? bound[1]->str() : "common";
  if (method == "ceil") return std::ceil(*number * scale) / scale;
  if (method == "floor") return std::floor(*number * scale) / scale;
  if (method != "common") throw TemplateError{"round: method is common, ceil or floor"};
  if (value.as_int() != nullptr || value.as_big() != nullptr) return value;
  return std::nearbyint(*number * scale) / scale;
}

Value escape(Runtime& runtime, const Value& value, const Arguments&) {
  std::string out;
  for (const char c : value.str()) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out.push_back(c);
    }
  }
  return made(runtime, std::move(out));
}

Value indent_filter(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("indent", {"width", "first", "blank"});
  std::string prefix = "    ";
  if (bound[0]) {
    prefix = bound[0]->as_string() != nullptr
                 ? *bound[0]->as_string()
                 : std::string(static_cast<size_t>(std::clamp<int64_t>(count_of(bound[0], 4, "indent"), 0, 1000)), ' ');
  }
  const std::string text = value.str();
  std::string out;
  bool first = true;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    const bool indented = first ? flag(bound[1]) : !line.empty() || flag(bound[2]);
    if (!first) out.push_back('\n');
    if (indented) out += prefix;
    out += line;
    runtime.charge_bytes(prefix.size() + line.size());
    first = false;
    at = end + 1;
  }
  return out;
}

Value unique(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("unique", {"case_sensitive", "attribute"});
  std::vector<Value> seen, out;
  for (auto& [key, item] : keyed_items(runtime, value, flag(bound[0]), bound[1])) {
    runtime.charge(key.weight() * (1 + seen.size() / 8));
    if (std::any_of(seen.begin(), seen.end(), [&, &k = key](const Value& v) { return v.equals(k); })) continue;
    seen.push_back(std::move(key));
    out.push_back(std::move(item));
  }
  return Value::list(std::move(out));
}

Value sort_filter(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("sort", {"reverse", "case_sensitive", "attribute"});
  auto keyed = keyed_items(runtime, value, flag(bound[1]), bound[2]);
  sort_by_key(runtime, keyed, flag(bound[0]));
  std::vector<Value> out;
  for (auto& item : keyed) out.push_back(std::move(item.second));
  return Value::list(std::move(out));
}

Value extreme(Runtime& runtime, const Value& value, const Arguments& arguments, bool largest) {
  const auto bound = arguments.bind(largest ? "max" : "min", {"case_sensitive", "attribute"});
  const auto keyed = keyed_items(runtime, value, flag(bound[0]), bound[1]);
  if (keyed.empty()) return Undefined{"no aggregated item, sequence was empty"};
  const auto* best = &keyed.front();
  for (const auto& item : keyed) {
    if (largest ? best->first.less(item.first) : item.first.less(best->first)) best = &item;
  }
  return best->second;
}

Value dict_sort(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const auto* dict = value.as_dict();
  if (dict == nullptr) throw TemplateError{fmt::format("dictsort needs a mapping, not {}", value.type_name())};
  const bool by_value = bound[1] && bound[1]->str() == "value";
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, entry] : dict->items) {
    keyed.emplace_back(sort_key(by_value ? entry : key, flag(bound[0])), Value::tuple({key, entry}));
  }
  sort_by_key(runtime, keyed, flag(bound[2]));
  std::vector<Value> out;
  for (auto& item : keyed) out.push_back(std::move(item.second));
  return Value::list(std::move(out));
}

Value group_by(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("groupby", {"attribute", "default", "case_sensitive"});
  if (!bound[0]) throw TemplateError{"groupby needs an attribute"};
  const auto key_of = [&](const Value& item) {
    Value key = attribute_path(item, *bound[0]);
    return key.is_undefined() && bound[1] ? *bound[1] : key;
  };
  std::vector<std::pair<Value, Value>> keyed;
  for (auto& item : walk(runtime, value)) keyed.emplace_back(sort_key(key_of(item), flag(bound[2])), std::move(item));
  sort_by_key(runtime, keyed, false);
  std::vector<Value> groups, members;
  for (size_t i = 0; i < keyed.size(); ++i) {
    members.push_back(keyed[i].second);
    if (i + 1 < keyed.size() && keyed[i + 1].first.equals(keyed[i].first)) continue;
    // Of keys that differ in case the first one stands for all.
    Value key = key_of(members.front());
    groups.push_back(Value::group(std::move(key), std::exchange(members, {})));
  }
  return Value::list(std::move(groups));
}

Value sum(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("sum", {"attribute", "start"});
  Value total = bound[1].value_or(Value(int64_t{0}));
  for (const auto& item : walk(runtime, value)) {
    const bool by_attribute = bound[0] && !bound[0]->is_none();
    total = binary_operation(runtime, "+", total, by_attribute ? attribute_path(item, *bound[0]) : item);
  }
  return total;
}

Value batch(Runtime& runtime, const Value& value, const Arguments& arguments) {
  const auto bound = arguments.bind("batch", {"linecount", "fill_with"});
  const int64_t size = count_of(bound[0], 0, "batch");
  if (size < 1 || size > 100'000) throw TemplateError{"batch needs a size of at least 1"};
  std::vector<Value> rows, row;
  for (auto& item : walk(runtime, value)) {
    row.push_back(std::move(item));
    if (static_cast<int64_t>(row.size()) == size) rows.push_back(Value::list(std::exchange(row, {})));
  }
  if (!row.empty()) {
    while (bound[1] && static_cast<int64_t>(row.size()) < size) row.push_back(*bound[1]);
    rows.push_back(Value::list(std::move(row)));
  }
  return Value::list(std::move(rows));
}

Value first(Runtime& runtime, const Value& value, const Arguments&) {
  if (const auto* list = value.as_list()) return list->items.empty() ? Value() : list->items.front();
  const auto items = walk(runtime, value);
  return items.empty() ? Value(Undefined{"No first item, sequence was empty."}) : items.front();
}

Value last(Runtime& runtime, const Value& value, const Arguments&) {
  if (const auto* list = value.as_list()) return list->items.empty() ? Value() : list->items.back();
  const auto items = walk(runtime, value);
  return items.empty() ? Value(Undefined{"No last item, sequence was empty."}) : items.back();
}

Value reverse(Runtime& runtime, const Value& value, const Arguments&) {
  auto items = walk(runtime, value);
  std::reverse(items.begin(), items.end());
  if (value.as_string() == nullptr) return Value::list(std::move(items));
  std::string out;
  for (const auto& item : items) out += *item.as_string();
  return out;
}

Value dict_items(Runtime& runtime, const Value& value, const Arguments&) {
  if (value.is_undefined()) return Value::list({});
  if (value.as_dict() == nullptr) throw TemplateError{"Can only get item pairs from a mapping."};
  return bound_method(value, "items")->as_object()->call(runtime, {});
}

Value format_filter(Runtime& runtime, const Value& value, const Arguments& arguments) {
  if (arguments.named.empty()) return percent_format(runtime, value.str(), Value::tuple(arguments.positional));
  std::vector<std::pair<Value, Value>> named;
  for (const auto& [name, v] : arguments.named) named.emplace_back(Value(name), v);
  return percent_format(runtime, value.str(), Value::dict(std::move(named)));
}

Value absolute(Runtime&, const Value& value, const Arguments&) {
  if (const auto i = value.integral(); i && *i != INT64_MIN) return *i < 0 ? -*i : *i;
  if (value.as_big() != nullptr) return value;
  if (const auto d = value.number()) return std::abs(*d);
  if (value.is_undefined()) fail_undefined(value);
  throw TemplateError{fmt::format("bad operand type for abs(): '{}'", value.type_name())};
}

// Upper case after white space, hyphens and opening brackets, which is not where str.title() has it.
Value title(Runtime& runtime, const Value& value, const Arguments& arguments) {
  arguments.bind("title", {});
  const std::string text = value.str();
  std::string out, word;
  const auto end_word = [&] {
    const size_t first = word.empty() ? 0 : utf8_step(word).length;
    out += upper(word.substr(0, first)) + lower(word.substr(first));
    word.clear();
  };
  for (const auto c : code_points(text)) {
    if (!is_space(utf8_step(c).code_point) && std::string_view("-({[<").find(c) == std::string_view::npos) {
      word += c;
      continue;
    }
    end_word();
    out += c;
  }
  end_word();
  return made(runtime, std::move(out));
}

// Runs of what Python's regular expressions call a word: letters, numbers and underscores.
Value word_count(Runtime&, const Value& value, const Arguments& arguments) {
  arguments.bind("wordcount", {});
  size_t count = 0;
  bool inside = false;
  const std::string text = value.str();
  for (const auto c : code_points(text)) {
    const auto code_point = static_cast<UChar32>(utf8_step(c).code_point);
    const bool word = c == "_" || (U_GET_GC_MASK(code_point) & (U_GC_L_MASK | U_GC_N_MASK)) != 0;
    if (word && !inside) ++count;
    inside = word;
  }
  return Value::integer(count);
}

Value url_encode(Runtime& runtime, const Value& value, const Arguments&) {
  std::string out;
  for (const char c : value.str()) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("_.-~/").find(c) != std::string_view::npos;
    if (plain) {
      out.push_back(c);
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return made(runtime, std::move(out));
}

// An attribute alone, never an item of the same name.
Value attribute(Runtime&, const Value& value, const Arguments& arguments) {
  const std::string name = arguments.bind("attr", {"name"})[0].value_or(Value("")).str();
  const auto* dict = value.as_dict();
  if (dict != nullptr && !bound_method(value, name)) {
    return Undefined{fmt::format("'dict' object has no attribute '{}'", name)};
  }
  return get_attribute(value, name);
}

// One row per filter; r, v and a are the runtime, the value and the arguments.
#define SLUICE_FILTER(expression) \
  [](Runtime& r, const Value& v, const Arguments& a) -> Value { return (void)r, (void)v, (void)a, expression; }

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> table = {
      {"abs", absolute},
      {"attr", attribute},
      {"batch", batch},
      {"capitalize", SLUICE_FILTER(call_method(r, v, "capitalize", a))},
      {"center",
       SLUICE_FILTER(call_method(r, v, "center",
                                 a.positional.empty() && a.named.empty() ? Arguments{{Value(int64_t{80})}, {}} : a))},
      {"count", SLUICE_FILTER(Value::integer(v.length()))},
      {"d", default_value},
      {"default", default_value},
      {"dictsort", dict_sort},
      {"e", escape},
      {"escape", escape},
      {"first", first},
      {"float", to_float},
      {"forceescape", escape},
      {"format", format_filter},
      {"groupby", group_by},
      {"indent", indent_filter},
      {"int", to_int},
      {"items", dict_items},
      {"join", join_filter},
      {"last", last},
      {"length", SLUICE_FILTER(Value::integer(v.length()))},
      {"list", SLUICE_FILTER(Value::list(walk(r, v)))},
      {"lower", SLUICE_FILTER(call_method(r, v, "lower", a))},
      {"map", map_filter},
      {"max", SLUICE_FILTER(extreme(r, v, a, true))},
      {"min", SLUICE_FILTER(extreme(r, v, a, false))},
      {"reject", SLUICE_FILTER(select_filter(r, v, a, false, false))},
      {"rejectattr", SLUICE_FILTER(select_filter(r, v, a, true, false))},
      {"replace", SLUICE_FILTER(call_method(r, v, "replace", a))},
      {"reverse", reverse},
      {"round", round_filter},
      {"safe", SLUICE_FILTER(v)},
      {"select", SLUICE_FILTER(select_filter(r, v, a, false, true))},
      {"selectattr", SLUICE_FILTER(select_filter(r, v, a, true, true))},
      {"sort", sort_filter},
      {"string", SLUICE_FILTER(v.as_string() != nullptr ? v : made(r, v.str()))},
      {"sum", sum},
      {"title", title},
      {"tojson", to_json},
      {"trim", SLUICE_FILTER(call_method(r, v, "strip", a))},
      {"unique", unique},
      {"upper", SLUICE_FILTER(call_method(r, v, "upper", a))},
      {"urlencode", url_encode},
      {"wordcount", word_count},
  };
  return table;
}
#undef SLUICE_FILTER

bool has_letters_of(const Value& value, std::string_view method) {
  const std::string text = value.str();
  return method == "upper" ? text == upper(text) && text != lower(text) : text == lower(text) && text != upper(text);
}

const Value& operand(const Arguments& arguments) {
  if (arguments.positional.size() != 1 || !arguments.named.empty()) throw TemplateError{"the test needs one argument"};
  return arguments.positional.front();
}

int64_t whole(const Value& value) {
  if (const auto i = value.integral()) return *i;
  if (value.is_undefined()) fail_undefined(value);
  throw TemplateError{fmt::format("the test needs an integer, not {}", value.type_name())};
}

bool divisible(const Value& value, const Value& by) {
  const int64_t divisor = whole(by);
  if (divisor == 0) throw TemplateError{"division by zero"};
  return divisor == -1 || whole(value) % divisor == 0;
}

bool iterable(const Value& v) {
  return v.is_undefined() || v.as_string() != nullptr || v.as_list() != nullptr || v.as_dict() != nullptr;
}

#define SLUICE_TEST(expression) \
  [](Runtime& r, const Value& v, const Arguments& a) -> bool { return (void)r, (void)v, (void)a, expression; }

const std::map<std::string_view, Test>& tests() {
  static const Test equal = SLUICE_TEST(v.equals(operand(a)));
  static const Test unequal = SLUICE_TEST(!v.equals(operand(a)));
  static const Test less = SLUICE_TEST(v.less(operand(a)));
  static const Test greater = SLUICE_TEST(operand(a).less(v));
  static const Test less_or_equal = SLUICE_TEST(v.less(operand(a)) || v.equals(operand(a)));
  static const Test greater_or_equal = SLUICE_TEST(operand(a).less(v) || v.equals(operand(a)));
  static const std::map<std::string_view, Test> table = {
      {"!=", unequal},
      {"<", less},
      {"<=", less_or_equal},
      {"==", equal},
      {">", greater},
      {">=", greater_or_equal},
      {"boolean", SLUICE_TEST(v.as_bool() != nullptr)},
      {"callable", SLUICE_TEST(v.as_object() != nullptr && v.as_object()->callable())},
      {"defined", SLUICE_TEST(!v.is_undefined())},
      {"divisibleby", SLUICE_TEST(divisible(v, operand(a)))},
      {"eq", equal},
      {"equalto", equal},
      {"escaped", SLUICE_TEST(false)},
      {"even", SLUICE_TEST(whole(v) % 2 == 0)},
      {"false", SLUICE_TEST(v.as_bool() != nullptr && !*v.as_bool())},
      {"filter", SLUICE_TEST(filters().contains(v.str()))},
      {"float", SLUICE_TEST(v.as_float() != nullptr)},
      {"ge", greater_or_equal},
      {"greaterthan", greater},
      {"gt", greater},
      {"in", SLUICE_TEST(operand(a).contains(v))},
      {"integer", SLUICE_TEST(v.as_int() != nullptr || v.as_big() != nullptr)},
      {"iterable", SLUICE_TEST(iterable(v))},
      {"le", less_or_equal},
      {"lessthan", less},
      {"lower", SLUICE_TEST(has_letters_of(v, "lower"))},
      {"lt", less},
      {"mapping", SLUICE_TEST(v.as_dict() != nullptr)},
      {"ne", unequal},
      {"none", SLUICE_TEST(v.is_none())},
      {"number", SLUICE_TEST(v.number().has_value())},
      {"odd", SLUICE_TEST(whole(v) % 2 != 0)},
      {"sameas", SLUICE_TEST(v.same_as(operand(a)))},
      {"sequence", SLUICE_TEST(iterable(v))},
      {"string", SLUICE_TEST(v.as_string() != nullptr)},
      {"test", SLUICE_TEST(tests().contains(v.str()))},
      {"true", SLUICE_TEST(v.as_bool() != nullptr && *v.as_bool())},
      {"undefined", SLUICE_TEST(v.is_undefined())},
      {"upper", SLUICE_TEST(has_letters_of(v, "upper"))},
  };
  return table;
}
#undef SLUICE_TEST

class Namespace final : public Object {
 public:
  std::string_view type_name() const override { return "Namespace"; }
  std::optional<Value> attribute(std::string_view name) const override {
    const auto at = values_.find(name);
    return at == values_.end() ? std::nullopt : std::optional<Value>(at->second);
  }
  bool set_attribute(std::string_view name, Value value) override {
    values_.insert_or_assign(std::string(name), std::move(value));
    return true;
  }
  void clear() override { values_.clear(); }

 private:
  std::map<std::string, Value, std::less<>> values_;
};

// An argument of the form dict(mapping, name=value).
std::vector<std::pair<Value, Value>> dict_arguments(const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  if (arguments.positional.size() > 1) throw TemplateError{"dict() takes one positional argument"};
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional.front();
    if (const auto* dict = from.as_dict()) {
      items = dict->items;
    } else {
      for (const auto& pair : from.iterate()) {
        const auto parts = pair.iterate();
        if (parts.size() != 2) throw TemplateError{"dict() needs pairs"};
        items.emplace_back(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) items.emplace_back(Value(name), value);
  return items;
}

Value make_namespace(Runtime& runtime, const Arguments& arguments) {
  auto object = std::make_shared<Namespace>();
  runtime.adopt(object);
  for (auto& [key, value] : dict_arguments(arguments)) object->set_attribute(key.str(), std::move(value));
  return Value(Value::ObjectRef(std::move(object)));
}

Value make_range(Runtime& runtime, const Arguments& arguments) {
  const auto bound = arguments.bind("range", {"start", "stop", "step"});
  if (!bound[0]) throw TemplateError{"range() needs an argument"};
  const int64_t start = bound[1] ? count_of(bound[0], 0, "range()") : 0;
  const int64_t stop = bound[1] ? count_of(bound[1], 0, "range()") : count_of(bound[0], 0, "range()");
  const int64_t step = count_of(bound[2], 1, "range()");
  if (step == 0) throw TemplateError{"range() arg 3 must not be zero"};
  constexpr int64_t kMax = 100'000;  // as in Jinja2's sandbox
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kMax) {
      throw TemplateError{fmt::format("range() is larger than {}", kMax)};
    }
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  runtime.charge(items.size());
  return Value::list(std::move(items));
}

Value make_joiner(Runtime&, const Arguments& arguments) {
  const auto bound = arguments.bind("joiner", {"sep"});
  return Function::make(
      [separator = bound[0] ? bound[0]->str() : ", ", used = std::make_shared<bool>(false)](
          Runtime&, const Arguments&) -> Value { return std::exchange(*used, true) ? Value(separator) : Value(""); });
}

class Cycler final : public Object {
 public:
  explicit Cycler(std::vector<Value> items) : items_(std::move(items)) {}
  std::string_view type_name() const override { return "Cycler"; }
  uint32_t depth() const override {
    uint32_t depth = 0;
    for (const auto& item : items_) depth = std::max(depth, item.depth());
    return depth + 1;
  }
  std::optional<Value> attribute(std::string_view name) const override {
    if (name == "current") return items_[*at_];
    if (name == "next") {
      return Function::make(
          [items = items_, at = at_](Runtime&, const Arguments&) {
            return items[std::exchange(*at, (*at + 1) % items.size())];
          },
          depth() + 1);
    }
    if (name == "reset") {
      return Function::make([at = at_](Runtime&, const Arguments&) -> Value {
        *at = 0;
        return None{};
      });
    }
    return std::nullopt;
  }

 private:
  const std::vector<Value> items_;
  const std::shared_ptr<size_t> at_ = std::make_shared<size_t>(0);
};

Value make_cycler(Runtime& runtime, const Arguments& arguments) {
  if (arguments.positional.empty()) throw TemplateError{"cycler() needs an item"};
  runtime.charge(arguments.positional.size());
  auto cycler = std::make_shared<Cycler>(arguments.positional);
  if (cycler->depth() > kMaxDepth) throw TemplateError{"values are nested too deep"};
  return Value(Value::ObjectRef(std::move(cycler)));
}

Value raise_exception(Runtime&, const Arguments& arguments) {
  const auto bound = arguments.bind("raise_exception", {"message"});
  throw TemplateError{bound[0] ? bound[0]->str() : "the template refused the request"};
}

// The clock's time in UTC: a server's answers do not depend on where it stands.
Value format_time(Runtime& runtime, const Arguments& arguments) {
  const auto bound = arguments.bind("strftime_now", {"format"});
  const std::string format = bound[0] ? bound[0]->str() : "";
  if (format.empty()) return "";
  const auto now = static_cast<std::time_t>(runtime.unix_nanos() / 1'000'000'000);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char buffer[512];
  return std::string(buffer, std::strftime(buffer, sizeof(buffer), format.c_str(), &parts));
}

}  // namespace

std::vector<Value> walk(Runtime& runtime, const Value& value) {
  // Each character of a string becomes a value of its own.
  if (const auto* text = value.as_string()) runtime.charge(text->size() * 8);
  auto items = value.iterate();
  runtime.charge(items.size());
  return items;
}

Value apply_builtin_filter(Runtime& runtime, const std::string& name, const Value& value, const Arguments& arguments) {
  const auto filter = filters().find(name);
  if (filter == filters().end()) throw TemplateError{fmt::format("No filter named '{}'.", name)};
  // Templates ask for the length of a whole conversation at each of its messages.
  static const std::set<std::string_view> look_at_nothing = {"count", "d", "default", "length", "safe"};
  const bool looks = value.as_string() != nullptr || !look_at_nothing.contains(name);
  runtime.charge(looks ? value.weight() : 1);
  return filter->second(runtime, value, arguments);
}

bool apply_builtin_test(Runtime& runtime, const std::string& name, const Value& value, const Arguments& arguments) {
  const auto test = tests().find(name);
  if (test == tests().end()) throw TemplateError{fmt::format("No test named '{}'.", name)};
  runtime.charge(1);
  for (const auto& argument : arguments.positional) runtime.charge(value.weight() + argument.weight());
  return test->second(runtime, value, arguments);
}

std::optional<Value> global_function(std::string_view name) {
  using Body = Value (*)(Runtime&, const Arguments&);
  static const std::map<std::string_view, Body> table = {
      {"cycler", make_cycler},
      {"dict",
       [](Runtime& runtime, const Arguments& arguments) {
         auto items = dict_arguments(arguments);
         runtime.charge(items.size());
         return Value::dict(std::move(items));
       }},
      {"joiner", make_joiner},
      {"namespace", make_namespace},
      {"raise_exception", raise_exception},
      {"range", make_range},
      {"strftime_now", format_time},
  };
  const auto body = table.find(name);
  if (body == table.end()) return std::nullopt;
  return Function::make(body->second);
}

}  // namespace sluice::tokenizer::jinja
