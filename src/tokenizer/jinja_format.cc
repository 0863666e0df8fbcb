// Python's two ways to format strings, as far as templates use them: flags, width, precision and the common types.
#include <algorithm>
#include <cmath>

#include "tokenizer/jinja_builtins.h"
#include "tokenizer/utf8.h"

namespace sluice::tokenizer::jinja {

namespace {

struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^' or 0 for the type's own
  bool plus = false;
  bool zero = false;
  bool comma = false;
  size_t width = 0;
  std::optional<size_t> precision;
  char type = 0;
};

constexpr size_t kMaxWidth = 10'000;

size_t read_number(std::string_view text, size_t& at) {
  size_t value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + static_cast<size_t>(text[at++] - '0');
    if (value > kMaxWidth) throw TemplateError{"a format is too wide"};
  }
  return value;
}

std::string with_thousands(std::string digits) {
  const size_t end = std::min(digits.find('.'), digits.size());
  const size_t begin = digits.starts_with('-') ? 1 : 0;
  for (size_t at = end; at > begin + 3;) {
    at -= 3;
    digits.insert(at, ",");
  }
  return digits;
}

std::string pad(std::string text, const Spec& spec, bool number) {
  const size_t length = count_code_points(text);
  if (length >= spec.width) return text;
  const size_t missing = spec.width - length;
  if (spec.zero && spec.align == 0 && number) {
    const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
    return text.insert(sign, missing, '0');
  }
  const char align = spec.align != 0 ? spec.align : number ? '>' : '<';
  const size_t left = align == '<' ? 0 : align == '>' ? missing : missing / 2;
  std::string out;
  for (size_t i = 0; i < left; ++i) out += spec.fill;
  out += text;
  for (size_t i = left; i < missing; ++i) out += spec.fill;
  return out;
}

std::string format_value(const Value& value, const Spec& spec) {
  const auto number = value.number();
  const auto integral = value.integral();
  std::string text;
  switch (spec.type) {
    case 0:
    case 's': {
      if (spec.type == 0 && number && value.as_bool() == nullptr) {
        text = value.str();
        if (value.as_float() != nullptr && spec.precision) text = fmt::format("{:.{}g}", *number, *spec.precision);
        break;
      }
      text = value.str();
      if (spec.precision && count_code_points(text) > *spec.precision) {
        std::string cut;
        const auto characters = code_points(text);
        for (size_t i = 0; i < *spec.precision; ++i) cut += characters[i];
        text = std::move(cut);
      }
      return pad(std::move(text), spec, false);
    }
    case 'r':
      value.append_repr(text);
      return pad(std::move(text), spec, false);
    case 'd':
    case 'i':
      if (!number) throw TemplateError{fmt::format("format 'd' needs a number, not {}", value.type_name())};
      if (value.as_big() != nullptr) {
        text = value.str();
        break;
      }
      if (!integral && !(std::abs(*number) < 9e18)) throw TemplateError{"a number is too large"};
      text = std::to_string(integral ? *integral : static_cast<int64_t>(*number));
      break;
    case 'x':
    case 'X':
    case 'o':
    case 'b': {
      if (!integral) throw TemplateError{fmt::format("format '{}' needs an integer", spec.type)};
      const uint64_t magnitude =
          *integral < 0 ? 0 - static_cast<uint64_t>(*integral) : static_cast<uint64_t>(*integral);
      text = spec.type == 'x'   ? fmt::format("{:x}", magnitude)
             : spec.type == 'X' ? fmt::format("{:X}", magnitude)
             : spec.type == 'o' ? fmt::format("{:o}", magnitude)
                                : fmt::format("{:b}", magnitude);
      if (*integral < 0) text.insert(0, "-");
      break;
    }
    case 'f':
    case 'F':
    case 'e':
    case 'g':
    case '%': {
      if (!number) throw TemplateError{fmt::format("format '{}' needs a number", spec.type)};
      const size_t precision = std::min<size_t>(spec.precision.value_or(6), 60);
      text = spec.type == 'e'   ? fmt::format("{:.{}e}", *number, precision)
             : spec.type == 'g' ? fmt::format("{:.{}g}", *number, precision)
             : spec.type == '%' ? fmt::format("{:.{}f}%", *number * 100, precision)
                                : fmt::format("{:.{}f}", *number, precision);
      break;
    }
    default:
      throw TemplateError{fmt::format("unsupported format character '{}'", spec.type)};
  }
  if (spec.comma) text = with_thousands(std::move(text));
  if (spec.plus && !text.starts_with('-')) text.insert(0, "+");
  return pad(std::move(text), spec, true);
}

Spec read_brace_spec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() && (text[i] == '<' || text[i] == '>' || text[i] == '^');
  };
  const size_t first = text.empty() ? 0 : utf8_step(text).length;
  if (first > 0 && is_align(first)) {
    spec.fill = std::string(text.substr(0, first));
    spec.align = text[first];
    at = first + 1;
  } else if (is_align(0)) {
    spec.align = text[at++];
  }
  if (at < text.size() && (text[at] == '+' || text[at] == '-')) spec.plus = text[at++] == '+';
  if (at < text.size() && text[at] == '0') spec.zero = true;
  spec.width = read_number(text, at);
  if (at < text.size() && text[at] == ',') {
    spec.comma = true;
    ++at;
  }
  if (at < text.size() && text[at] == '.') spec.precision = read_number(text, ++at);
  if (at < text.size()) spec.type = text[at++];
  if (at != text.size()) throw TemplateError{fmt::format("unsupported format \"{}\"", text)};
  return spec;
}

// "name.attribute[key]" or "0" or "".
Value brace_field(std::string_view field, const Arguments& arguments, size_t& next) {
  size_t end = std::min({field.find('.'), field.find('['), field.size()});
  const auto name = field.substr(0, end);
  Value value;
  if (name.empty() || std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    size_t at = 0;
    const size_t index = name.empty() ? next++ : read_number(name, at);
    if (index >= arguments.positional.size()) throw TemplateError{"format has too few arguments"};
    value = arguments.positional[index];
  } else {
    const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                    [&](const auto& argument) { return argument.first == name; });
    if (found == arguments.named.end()) throw TemplateError{fmt::format("format has no argument '{}'", name)};
    value = found->second;
  }
  while (end < field.size()) {
    if (field[end] == '.') {
      const size_t stop = std::min({field.find('.', end + 1), field.find('[', end + 1), field.size()});
      value = get_attribute(value, field.substr(end + 1, stop - end - 1));
      end = stop;
    } else {
      const size_t stop = field.find(']', end);
      if (stop == std::string_view::npos) throw TemplateError{"format has a '[' without ']'"};
      const auto key = field.substr(end + 1, stop - end - 1);
      size_t at = 0;
      const bool numeric = !key.empty() && key.find_first_not_of("0123456789") == std::string_view::npos;
      value = get_item(value, numeric ? Value::integer(read_number(key, at)) : Value(key));
      end = stop + 1;
    }
  }
  return value;
}

}  // namespace

std::string percent_format(Runtime& runtime, std::string_view text, const Value& values) {
  std::vector<Value> positional;
  if (const auto* list = values.as_list(); list != nullptr && list->tuple) {
    positional = list->items;
  } else {
    positional.push_back(values);
  }
  size_t used = 0;
  bool by_name = false;
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (text[at] != '%') {
      out.push_back(text[at++]);
      continue;
    }
    if (++at >= text.size()) throw TemplateError{"incomplete format"};
    if (text[at] == '%') {
      out.push_back('%');
      ++at;
      continue;
    }
    std::optional<Value> named;
    if (text[at] == '(') {
      const size_t close = text.find(')', at);
      if (close == std::string_view::npos) throw TemplateError{"incomplete format key"};
      named = get_item(values, Value(text.substr(at + 1, close - at - 1)));
      by_name = true;
      at = close + 1;
    }
    Spec spec;
    spec.align = '>';
    for (; at < text.size() && std::string_view("-+0 #").find(text[at]) != std::string_view::npos; ++at) {
      if (text[at] == '-') spec.align = '<';
      if (text[at] == '+') spec.plus = true;
      if (text[at] == '0') spec.zero = true;
    }
    if (spec.zero && spec.align == '>') spec.align = 0;
    spec.width = read_number(text, at);
    if (at < text.size() && text[at] == '.') spec.precision = read_number(text, ++at);
    if (at >= text.size()) throw TemplateError{"incomplete format"};
    spec.type = text[at++];
    if (!named && used >= positional.size()) throw TemplateError{"not enough arguments for format string"};
    const Value& value = named ? *named : positional[used++];
    out += format_value(value, spec);
    runtime.charge_bytes(out.size() / 64);
  }
  if (!by_name && used < positional.size() && values.as_dict() == nullptr) {
    throw TemplateError{"not all arguments converted during string formatting"};
  }
  runtime.charge_bytes(out.size());
  return out;
}

std::string brace_format(Runtime& runtime, std::string_view text, const Arguments& arguments) {
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c != '{' && c != '}') {
      out.push_back(c);
      ++at;
      continue;
    }
    if (at + 1 < text.size() && text[at + 1] == c) {
      out.push_back(c);
      at += 2;
      continue;
    }
    const size_t close = text.find('}', at);
    if (c == '}' || close == std::string_view::npos) throw TemplateError{"format has a single brace"};
    auto inside = text.substr(at + 1, close - at - 1);
    if (inside.find('{') != std::string_view::npos) throw TemplateError{"nested format fields are not supported"};
    const size_t colon = std::min(inside.find(':'), inside.size());
    const Spec spec = read_brace_spec(inside.substr(std::min(colon + 1, inside.size())));
    auto field = inside.substr(0, colon);
    bool repr = false;
    if (field.ends_with("!r") || field.ends_with("!s")) {
      repr = field.back() == 'r';
      field.remove_suffix(2);
    }
    Value value = brace_field(field, arguments, next);
    if (repr) {
      std::string quoted;
      value.append_repr(quoted);
      value = std::move(quoted);
    }
    out += format_value(value, spec);
    runtime.charge_bytes(out.size() / 64);
    at = close + 1;
  }
  runtime.charge_bytes(out.size());
  return out;
}

}  // namespace sluice::tokenizer::jinja
