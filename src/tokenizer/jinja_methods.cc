// Methods of strings, lists and mappings, as Python has them.
#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <map>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer::jinja {

namespace {

using StringMethod = Value (*)(Runtime&, const std::string&, const Arguments&);

std::string convert(std::string_view text, bool to_upper) {
  if (is_ascii(text)) {
    std::string out(text);
    for (char& c : out) {
      if (to_upper && c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
      if (!to_upper && c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    }
    return out;
  }
  auto unicode = icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
  to_upper ? unicode.toUpper(icu::Locale::getRoot()) : unicode.toLower(icu::Locale::getRoot());
  std::string out;
  unicode.toUTF8String(out);
  return out;
}

const std::string& text_of(const Value& value, std::string_view function) {
  if (const auto* s = value.as_string()) return *s;
  if (const auto* u = value.as_undefined()) throw TemplateError{u->why};
  throw TemplateError{fmt::format("{}() needs a string, not {}", function, value.type_name())};
}

int64_t integer_of(const Value& value, std::string_view function) {
  if (const auto i = value.integral()) return *i;
  throw TemplateError{fmt::format("{}() needs an integer, not {}", function, value.type_name())};
}

Value strip(const std::string& text, const Arguments& arguments, bool left, bool right, std::string_view name) {
  const auto bound = arguments.bind(name, {"chars"});
  std::string_view rest = text;
  if (!bound[0] || bound[0]->is_none()) {
    if (left) rest = strip_left(rest);
    if (right) rest = strip_right(rest);
    return rest;
  }
  const auto set = code_points(text_of(*bound[0], name));
  const auto in_set = [&](std::string_view c) { return std::find(set.begin(), set.end(), c) != set.end(); };
  while (left && !rest.empty()) {
    const auto first = rest.substr(0, utf8_step(rest).length);
    if (!in_set(first)) break;
    rest.remove_prefix(first.size());
  }
  while (right && !rest.empty()) {
    size_t at = rest.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(rest[at]) & 0xC0) == 0x80) --at;
    if (!in_set(rest.substr(at))) break;
    rest = rest.substr(0, at);
  }
  return rest;
}

std::vector<std::string_view> split_spaces(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  for (text = strip_left(text); !text.empty(); text = strip_left(text)) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(strip_right(text));
      break;
    }
    size_t n = 0;
    while (n < text.size()) {
      const auto step = utf8_step(text.substr(n));
      if (is_space(step.code_point)) break;
      n += step.length;
    }
    parts.push_back(text.substr(0, n));
    text.remove_prefix(n);
  }
  return parts;
}

std::vector<std::string_view> rsplit_spaces(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  for (text = strip_right(text); !text.empty(); text = strip_right(text)) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(strip_left(text));
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      size_t at = begin - 1;
      while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
      if (is_space(utf8_step(text.substr(at)).code_point)) break;
      begin = at;
    }
    parts.push_back(text.substr(begin));
    text = text.substr(0, begin);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Value split(Runtime& runtime, const std::string& text, const Arguments& arguments, bool from_right) {
  const auto* const name = from_right ? "rsplit" : "split";
  const auto bound = arguments.bind(name, {"sep", "maxsplit"});
  const int64_t limit = bound[1] ? integer_of(*bound[1], name) : -1;
  std::vector<std::string_view> parts;
  if (!bound[0] || bound[0]->is_none()) {
    parts = from_right ? rsplit_spaces(text, limit) : split_spaces(text, limit);
  } else {
    const auto& separator = text_of(*bound[0], name);
    if (separator.empty()) throw TemplateError{"empty separator"};
    std::string_view rest = text;
    while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
      const size_t at = from_right ? rest.rfind(separator) : rest.find(separator);
      if (at == std::string_view::npos) break;
      if (from_right) {
        parts.push_back(rest.substr(at + separator.size()));
        rest = rest.substr(0, at);
      } else {
        parts.push_back(rest.substr(0, at));
        rest.remove_prefix(at + separator.size());
      }
    }
    parts.push_back(rest);
    if (from_right) std::reverse(parts.begin(), parts.end());
  }
  runtime.charge(parts.size());
  return Value::list({parts.begin(), parts.end()});
}

Value affix(const std::string& text, const Arguments& arguments, bool at_start) {
  const auto* const name = at_start ? "startswith" : "endswith";
  const auto bound = arguments.bind(name, {"prefix"});
  if (!bound[0]) throw TemplateError{fmt::format("{}() needs an argument", name)};
  const auto matches = [&](const Value& v) {
    const auto& wanted = text_of(v, name);
    return at_start ? text.starts_with(wanted) : text.ends_with(wanted);
  };
  if (const auto* list = bound[0]->as_list(); list != nullptr && list->tuple) {
    return std::any_of(list->items.begin(), list->items.end(), matches);
  }
  return matches(*bound[0]);
}

Value find(const std::string& text, const Arguments& arguments, std::string_view name, bool last, bool must) {
  const auto bound = arguments.bind(name, {"sub", "start"});
  if (!bound[0]) throw TemplateError{fmt::format("{}() needs an argument", name)};
  size_t from = 0;
  if (bound[1]) {
    const auto characters = code_points(text);
    const auto n = static_cast<int64_t>(characters.size());
    int64_t start = integer_of(*bound[1], name);
    start = start < 0 ? std::max<int64_t>(0, start + n) : start;
    if (start > n) return must ? throw TemplateError{"substring not found"} : Value(int64_t{-1});
    from = start == n ? text.size() : static_cast<size_t>(characters[static_cast<size_t>(start)].data() - text.data());
  }
  const auto& wanted = text_of(*bound[0], name);
  size_t at = last ? text.rfind(wanted) : text.find(wanted, from);
  if (at != std::string::npos && at < from) at = std::string::npos;
  if (at == std::string::npos) {
    if (must) throw TemplateError{"substring not found"};
    return int64_t{-1};
  }
  return Value::integer(count_code_points(std::string_view(text).substr(0, at)));
}

Value replace(Runtime& runtime, const std::string& text, const Arguments& arguments) {
  const auto bound = arguments.bind("replace", {"old", "new", "count"});
  if (!bound[0] || !bound[1]) throw TemplateError{"replace() needs two arguments"};
  const auto& from = text_of(*bound[0], "replace");
  const auto& to = text_of(*bound[1], "replace");
  int64_t left = bound[2] && !bound[2]->is_none() ? integer_of(*bound[2], "replace") : -1;
  std::string out;
  size_t at = 0;
  if (from.empty()) {  // between all characters
    for (const auto c : code_points(text)) {
      if (left-- != 0) out += to;
      out += c;
      runtime.charge_bytes(to.size());
    }
    if (left != 0) out += to;
    return out;
  }
  for (; left != 0; --left) {
    const size_t next = text.find(from, at);
    if (next == std::string::npos) break;
    out.append(text, at, next - at).append(to);
    runtime.charge_bytes(to.size());
    at = next + from.size();
  }
  out.append(text, at);
  return out;
}

template <class Accepts>
bool all_characters(const std::string& text, Accepts accepts) {
  if (text.empty()) return false;
  for (const auto c : code_points(text)) {
    if (!accepts(static_cast<UChar32>(utf8_step(c).code_point))) return false;
  }
  return true;
}

// Letters that begin a word are upper case, the others lower case. `every_word` false: only the first of the text.
std::string title(std::string_view text, bool every_word) {
  std::string out;
  bool begin = true;
  for (const auto c : code_points(text)) {
    out += begin ? upper(c) : lower(c);
    const bool letter = u_isalpha(static_cast<UChar32>(utf8_step(c).code_point));
    begin = every_word && !letter;
  }
  return out;
}

Value justify(const std::string& text, const Arguments& arguments, std::string_view name, double left_share) {
  const auto bound = arguments.bind(name, {"width", "fillchar"});
  if (!bound[0]) throw TemplateError{fmt::format("{}() needs a width", name)};
  const int64_t width = integer_of(*bound[0], name);
  if (width > 100'000) throw TemplateError{fmt::format("{}() is too wide", name)};
  const std::string fill = bound[1] ? text_of(*bound[1], name) : " ";
  if (count_code_points(fill) != 1) throw TemplateError{fmt::format("{}() fills with one character", name)};
  const auto length = static_cast<int64_t>(count_code_points(text));
  if (width <= length) return text;
  const auto missing = static_cast<size_t>(width - length);
  const auto left = static_cast<size_t>(static_cast<double>(missing) * left_share);
  std::string out;
  for (size_t i = 0; i < left; ++i) out += fill;
  out += text;
  for (size_t i = left; i < missing; ++i) out += fill;
  return out;
}

Value partition(const std::string& text, const Arguments& arguments, bool last) {
  const auto* const name = last ? "rpartition" : "partition";
  const auto bound = arguments.bind(name, {"sep"});
  if (!bound[0]) throw TemplateError{fmt::format("{}() needs an argument", name)};
  const auto& separator = text_of(*bound[0], name);
  const std::string_view view = text;
  const size_t at = last ? view.rfind(separator) : view.find(separator);
  if (at == std::string_view::npos) {
    return last ? Value::tuple({Value(""), Value(""), Value(text)}) : Value::tuple({Value(text), Value(""), Value("")});
  }
  return Value::tuple({Value(view.substr(0, at)), Value(separator), Value(view.substr(at + separator.size()))});
}

Value split_lines(Runtime& runtime, const std::string& text, const Arguments& arguments) {
  const auto bound = arguments.bind("splitlines", {"keepends"});
  const bool keep = bound[0] && bound[0]->truthy();
  std::vector<Value> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find_first_of("\n\r", at), text.size());
    size_t next = end;
    if (end < text.size()) next += text.compare(end, 2, "\r\n") == 0 ? 2 : 1;
    lines.emplace_back(std::string_view(text).substr(at, (keep ? next : end) - at));
    at = next;
  }
  runtime.charge(lines.size());
  return Value::list(std::move(lines));
}

Value join(Runtime& runtime, const std::string& separator, const Arguments& arguments) {
  const auto bound = arguments.bind("join", {"iterable"});
  if (!bound[0]) throw TemplateError{"join() needs an argument"};
  std::string out;
  bool first = true;
  for (const auto& item : bound[0]->iterate()) {
    if (!std::exchange(first, false)) out += separator;
    const auto& text = text_of(item, "join");
    out += text;
    runtime.charge_bytes(text.size() + separator.size());
  }
  return out;
}

Value remove_affix(const std::string& text, const Arguments& arguments, bool at_start) {
  const auto bound = arguments.bind(at_start ? "removeprefix" : "removesuffix", {"affix"});
  const std::string affix = bound[0] ? text_of(*bound[0], "removeprefix") : "";
  std::string_view rest = text;
  if (at_start && rest.starts_with(affix)) rest.remove_prefix(affix.size());
  if (!at_start && rest.ends_with(affix)) rest.remove_suffix(affix.size());
  return rest;
}

Value count(const std::string& text, const Arguments& arguments) {
  const auto bound = arguments.bind("count", {"sub"});
  const std::string wanted = bound[0] ? text_of(*bound[0], "count") : "";
  if (wanted.empty()) return Value::integer(count_code_points(text) + 1);
  int64_t n = 0;
  for (size_t at = text.find(wanted); at != std::string::npos; at = text.find(wanted, at + wanted.size())) ++n;
  return n;
}

Value zero_fill(const std::string& text, const Arguments& arguments) {
  const auto bound = arguments.bind("zfill", {"width"});
  const int64_t width = bound[0] ? integer_of(*bound[0], "zfill") : 0;
  if (width > 100'000) throw TemplateError{"zfill() is too wide"};
  const auto length = static_cast<int64_t>(count_code_points(text));
  std::string out = text;
  if (width > length) {
    const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
    out.insert(sign, static_cast<size_t>(width - length), '0');
  }
  return out;
}

// One row per method.
#define SLUICE_METHOD(expression) \
  [](Runtime& r, const std::string& s, const Arguments& a) -> Value { return (void)r, (void)a, Value(expression); }

const std::map<std::string_view, StringMethod>& string_methods() {
  static const std::map<std::string_view, StringMethod> methods = {
      {"strip", SLUICE_METHOD(strip(s, a, true, true, "strip"))},
      {"lstrip", SLUICE_METHOD(strip(s, a, true, false, "lstrip"))},
      {"rstrip", SLUICE_METHOD(strip(s, a, false, true, "rstrip"))},
      {"split", SLUICE_METHOD(split(r, s, a, false))},
      {"rsplit", SLUICE_METHOD(split(r, s, a, true))},
      {"splitlines", SLUICE_METHOD(split_lines(r, s, a))},
      {"partition", SLUICE_METHOD(partition(s, a, false))},
      {"rpartition", SLUICE_METHOD(partition(s, a, true))},
      {"startswith", SLUICE_METHOD(affix(s, a, true))},
      {"endswith", SLUICE_METHOD(affix(s, a, false))},
      {"removeprefix", SLUICE_METHOD(remove_affix(s, a, true))},
      {"removesuffix", SLUICE_METHOD(remove_affix(s, a, false))},
      {"find", SLUICE_METHOD(find(s, a, "find", false, false))},
      {"rfind", SLUICE_METHOD(find(s, a, "rfind", true, false))},
      {"index", SLUICE_METHOD(find(s, a, "index", false, true))},
      {"rindex", SLUICE_METHOD(find(s, a, "rindex", true, true))},
      {"count", SLUICE_METHOD(count(s, a))},
      {"replace", SLUICE_METHOD(replace(r, s, a))},
      {"join", SLUICE_METHOD(join(r, s, a))},
      {"format", SLUICE_METHOD(brace_format(r, s, a))},
      {"upper", SLUICE_METHOD(upper(s))},
      {"lower", SLUICE_METHOD(lower(s))},
      {"title", SLUICE_METHOD(title(s, true))},
      {"capitalize", SLUICE_METHOD(title(s, false))},
      {"center", SLUICE_METHOD(justify(s, a, "center", 0.5))},
      {"ljust", SLUICE_METHOD(justify(s, a, "ljust", 0))},
      {"rjust", SLUICE_METHOD(justify(s, a, "rjust", 1))},
      {"zfill", SLUICE_METHOD(zero_fill(s, a))},
      {"isdigit", SLUICE_METHOD(all_characters(s, [](UChar32 c) { return u_isdigit(c); }))},
      {"isdecimal", SLUICE_METHOD(all_characters(s, [](UChar32 c) { return u_isdigit(c); }))},
      {"isnumeric",
       SLUICE_METHOD(all_characters(s, [](UChar32 c) { return u_getNumericValue(c) != U_NO_NUMERIC_VALUE; }))},
      {"isalpha", SLUICE_METHOD(all_characters(s, [](UChar32 c) { return u_isalpha(c); }))},
      {"isalnum", SLUICE_METHOD(all_characters(s, [](UChar32 c) { return u_isalnum(c); }))},
      {"isspace", SLUICE_METHOD(all_characters(s, [](UChar32 c) { return is_space(static_cast<char32_t>(c)); }))},
      {"isupper", SLUICE_METHOD(s == upper(s) && s != lower(s))},
      {"islower", SLUICE_METHOD(s == lower(s) && s != upper(s))},
  };
  return methods;
}
#undef SLUICE_METHOD

Value dict_method(const Value& self, std::string_view name, const Arguments& arguments) {
  const Dict& dict = *self.as_dict();
  if (name == "get") {
    const auto bound = arguments.bind("get", {"key", "default"});
    if (!bound[0]) throw TemplateError{"get() needs a key"};
    const Value* found = dict.find(*bound[0]);
    return found != nullptr ? *found : bound[1].value_or(Value(None{}));
  }
  arguments.bind(name, {});
  if (name == "copy") return self;
  std::vector<Value> out;
  out.reserve(dict.items.size());
  for (const auto& [key, value] : dict.items) {
    out.push_back(name == "keys" ? key : name == "values" ? value : Value::tuple({key, value}));
  }
  return Value::list(std::move(out));
}

Value list_method(const Value& self, std::string_view name, const Arguments& arguments) {
  const auto& items = self.as_list()->items;
  if (name == "copy") return self;
  const auto bound = arguments.bind(name, {"value"});
  if (!bound[0]) throw TemplateError{fmt::format("{}() needs an argument", name)};
  const auto same = [&](const Value& item) { return item.equals(*bound[0]); };
  if (name == "count") return Value::integer(static_cast<size_t>(std::count_if(items.begin(), items.end(), same)));
  const auto at = std::find_if(items.begin(), items.end(), same);
  if (at == items.end()) throw TemplateError{fmt::format("{} is not in list", bound[0]->str())};
  return Value::integer(static_cast<size_t>(at - items.begin()));
}

bool one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Transformers renders in an immutable sandbox.
Value immutable(std::string_view type, std::string_view name) {
  return Function::make([what = fmt::format("{}.{}() would change a value, which templates may not", type, name)](
                            Runtime&, const Arguments&) -> Value { throw TemplateError{what}; });
}

}  // namespace

std::string upper(std::string_view text) { return convert(text, true); }
std::string lower(std::string_view text) { return convert(text, false); }

std::optional<Value> bound_method(const Value& value, std::string_view name) {
  if (value.as_string() != nullptr) {
    const auto method = string_methods().find(name);
    if (method == string_methods().end()) return std::nullopt;
    return Function::make([value, body = method->second](Runtime& runtime, const Arguments& arguments) {
      runtime.charge_bytes(value.as_string()->size());
      return body(runtime, *value.as_string(), arguments);
    });
  }
  if (value.as_dict() != nullptr) {
    if (one_of(name, {"clear", "pop", "popitem", "setdefault", "update"})) return immutable("dict", name);
    if (!one_of(name, {"items", "keys", "values", "get", "copy"})) return std::nullopt;
    return Function::make(
        [value, method = std::string(name)](Runtime& runtime, const Arguments& arguments) {
          if (method != "get") runtime.charge(value.length());
          return dict_method(value, method, arguments);
        },
        value.depth() + 1);
  }
  if (const auto* list = value.as_list()) {
    const bool changes = one_of(name, {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"});
    if (changes && !list->tuple) return immutable("list", name);
    if (!one_of(name, {"index", "count", "copy"})) return std::nullopt;
    return Function::make(
        [value, method = std::string(name)](Runtime& runtime, const Arguments& arguments) {
          runtime.charge(value.weight());
          return list_method(value, method, arguments);
        },
        value.depth() + 1);
  }
  return std::nullopt;
}

}  // namespace sluice::tokenizer::jinja
