// Filters, tests, methods and functions of the template language.
#pragma once

#include <string>
#include <string_view>

#include "tokenizer/jinja_value.h"

namespace sluice::tokenizer::jinja {

// The items of an iteration over `value`, paid for.
std::vector<Value> walk(Runtime& runtime, const Value& value);

// All throw TemplateError. A name that is not known is one too.
Value apply_builtin_filter(Runtime& runtime, const std::string& name, const Value& value, const Arguments& arguments);
bool apply_builtin_test(Runtime& runtime, const std::string& name, const Value& value, const Arguments& arguments);

// A method of a string, list or mapping, bound to `value`; nothing when the type has none of that name.
std::optional<Value> bound_method(const Value& value, std::string_view name);

// range, dict, namespace, joiner, cycler, raise_exception, strftime_now; nothing for other names.
std::optional<Value> global_function(std::string_view name);

// value.name and value[key] as Jinja2 looks them up; an undefined value when there is none.
Value get_attribute(const Value& value, std::string_view name);
Value get_item(const Value& value, const Value& key);
Value slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step);

Value binary_operation(Runtime& runtime, std::string_view name, const Value& left, const Value& right);

// Python's str.upper() and str.lower().
std::string upper(std::string_view text);
std::string lower(std::string_view text);

// Python's "text" % values, and text.format(...).
std::string percent_format(Runtime& runtime, std::string_view text, const Value& values);
std::string brace_format(Runtime& runtime, std::string_view text, const Arguments& arguments);

}  // namespace sluice::tokenizer::jinja
