#include "parsers/tagged_calls.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "protocol/fields.h"

namespace sluice::parsers {
namespace {

using nlohmann::ordered_json;

constexpr size_t kLongestName = 1024;
constexpr int kDeepestSchema = 16;
constexpr size_t kMostSchemas = 1000;  // looked at for one value

std::string_view type_of(const ordered_json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "boolean";
  if (value.is_number_integer()) return "integer";
  if (value.is_number()) return "number";
  if (value.is_array()) return "array";
  return value.is_object() ? "object" : "string";
}

// The types that a function's schemas allow, as far as they name or show them.
class Types {
 public:
  Types(const OfferedTools& offered, std::string_view function) : offered_(offered), function_(function) {}

  void add(const ordered_json& schema, int depth = 0) {
    // References may go in circles, and many may lead to one schema.
    if (!schema.is_object() || depth > kDeepestSchema || seen_.size() == kMostSchemas) return;
    if (!seen_.insert(&schema).second) return;
    if (const auto type = schema.find("type"); type != schema.end()) {
      add_named(*type);
    } else if (schema.contains("properties")) {
      types_.emplace_back("object");
    } else if (schema.contains("items")) {
      types_.emplace_back("array");
    }
    if (const auto value = schema.find("const"); value != schema.end()) types_.emplace_back(type_of(*value));
    if (const auto values = schema.find("enum"); values != schema.end() && values->is_array()) {
      for (const auto& value : *values) types_.emplace_back(type_of(value));
    }
    for (const auto* key : {"anyOf", "oneOf", "allOf"}) {
      const auto choices = schema.find(key);
      if (choices == schema.end() || !choices->is_array()) continue;
      for (const auto& choice : *choices) add(choice, depth + 1);
    }
    if (const auto* other = offered_.referred(function_, schema)) add(*other, depth + 1);
  }

  std::vector<std::string> take() { return std::move(types_); }

 private:
  void add_named(const ordered_json& type) {
    if (type.is_string()) types_.push_back(type);
    if (!type.is_array()) return;
    for (const auto& one : type) {
      if (one.is_string()) types_.push_back(one);
    }
  }

  const OfferedTools& offered_;
  const std::string_view function_;
  std::unordered_set<const ordered_json*> seen_;
  std::vector<std::string> types_;
};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// Without the quotes.
std::string escaped(std::string_view text) {
  auto json = protocol::dump(text);
  return json.substr(1, json.size() - 2);
}

bool is_integer(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && (text == "0" || text[0] != '0') &&
         text.find_first_not_of("0123456789") == std::string_view::npos;
}

bool is_number(std::string_view text) {
  return text.find_first_not_of("+-.0123456789eE") == std::string_view::npos && ordered_json::accept(text);
}

}  // namespace

TaggedValue::TaggedValue(const OfferedTools& offered, std::string_view function, std::string_view name, bool lines)
    : lines_(lines) {
  if (const auto* schema = offered.parameter(function, name)) {
    Types types(offered, function);
    types.add(*schema);
    types_ = types.take();
  }
  const auto is_string = [](const std::string& type) { return type == "string"; };
  plain_ = std::ranges::all_of(types_, is_string);
}

std::string TaggedValue::push(std::string_view text) {
  if (first_line_ && !text.empty()) {
    if (lines_ && text.starts_with('\n')) text.remove_prefix(1);
    first_line_ = false;
  }
  held_ += text;
  if (!plain_) return {};
  // The word null is the value null, whatever the type.
  if (!begun_ && std::string_view("null\n").starts_with(lower(held_))) return {};
  size_t sure = held_.size();
  if (lines_ && held_.ends_with('\n')) --sure;
  std::string out;
  if (!std::exchange(begun_, true)) out = "\"";
  out += escaped(std::string_view(held_).substr(0, sure));
  held_.erase(0, sure);
  return out;
}

std::string TaggedValue::finish() {
  if (lines_ && held_.ends_with('\n')) held_.pop_back();
  if (begun_) return escaped(held_) + '"';
  return whole_value();
}

std::string TaggedValue::whole_value() const {
  const auto has = [this](std::string_view type) { return std::ranges::find(types_, type) != types_.end(); };
  const auto word = lower(trimmed(held_));
  if (word == "null" || (has("null") && (word == "none" || word == "nil"))) return "null";
  if (has("integer") && is_integer(word)) return word;
  if (has("number") && is_number(word)) return word;
  if (has("boolean")) {
    for (const auto* yes : {"true", "1", "yes", "on"}) {
      if (word == yes) return "true";
    }
    for (const auto* no : {"false", "0", "no", "off"}) {
      if (word == no) return "false";
    }
  }
  const bool json = (has("object") && word.starts_with('{')) || (has("array") && word.starts_with('['));
  if ((json || !(plain_ || has("string"))) && ordered_json::accept(trimmed(held_))) return std::string(trimmed(held_));
  return protocol::dump(held_);
}

bool TaggedCalls::step(ToolCallWriter& out) {
  switch (state_) {
    case State::kText:
      return take_text(out);
    case State::kSection:
      return take_section(out);
    case State::kName:
      return take_name(out);
    case State::kParameters:
      return take_parameters(out);
    case State::kKey:
      return take_key(out);
    case State::kValue:
      return take_value(out);
  }
  return false;
}

bool TaggedCalls::take_text(ToolCallWriter& out) {
  const std::array marks = {form_.section_begin, form_.call_begin};
  std::string text;
  const auto mark = window_.take_until(marks, text);
  out.text(text);
  if (!mark) return false;
  undecided_ = marks[*mark];
  function_.clear();
  state_ = *mark == 0 ? State::kSection : State::kName;
  return true;
}

// Between calls there is only white space; other text ends the section.
bool TaggedCalls::take_section(ToolCallWriter& out) {
  const std::array marks = {form_.call_begin, form_.section_end};
  std::string between;
  const auto mark = window_.take_until(marks, between);
  if (!trimmed(between).empty()) {
    out.text(std::exchange(undecided_, {}));
    if (mark) window_.put_back(marks[*mark].size());
    window_.put_front(between);
    state_ = State::kText;
    return true;
  }
  if (!undecided_.empty()) undecided_ += between;
  if (!mark) return false;
  if (*mark == 0) {
    undecided_ += form_.call_begin;
    function_.clear();
    state_ = State::kName;
    return true;
  }
  if (!undecided_.empty()) out.text(std::exchange(undecided_, {}).append(form_.section_end));
  state_ = State::kText;
  return true;
}

bool TaggedCalls::take_name(ToolCallWriter& out) {
  const std::array marks = {form_.name_end, std::string_view("\n")};
  const auto mark = window_.take_until(marks, function_);
  const bool short_enough = function_.size() <= kLongestName;
  if (!mark && short_enough) return false;
  const std::string name(trimmed(function_));
  if (mark == size_t{0} && short_enough && out.begin(name)) {
    function_ = name;
    undecided_.clear();
    first_ = true;
    state_ = State::kParameters;
    return true;
  }
  out.text(std::exchange(undecided_, {}));
  if (mark) window_.put_back(marks[*mark].size());
  window_.put_front(function_);
  state_ = State::kText;
  return true;
}

bool TaggedCalls::take_parameters(ToolCallWriter& out) {
  const std::array marks = {form_.parameter_begin, form_.call_end, form_.section_end};
  std::string other;
  const auto mark = window_.take_until(marks, other);
  if (!mark) return false;
  if (*mark == 0) {
    key_.clear();
    state_ = State::kKey;
    return true;
  }
  end_call(out);
  if (*mark == 2) window_.put_back(form_.section_end.size());
  return true;
}

bool TaggedCalls::take_key(ToolCallWriter& out) {
  const std::array marks = {form_.name_end};
  if (!window_.take_until(marks, key_)) return false;
  const std::string key(trimmed(key_));
  out.arguments(fmt::format("{}{}: ", first_ ? "{" : ", ", protocol::dump(key)));
  first_ = false;
  value_ = TaggedValue(out.offered(), function_, key, form_.lines);
  state_ = State::kValue;
  return true;
}

bool TaggedCalls::take_value(ToolCallWriter& out) {
  const std::array marks = {form_.parameter_end, form_.parameter_begin, form_.call_end};
  std::string text;
  const auto mark = window_.take_until(std::span(marks).first(form_.may_omit_ends ? 3 : 1), text);
  out.arguments(value_.push(text));
  if (!mark) return false;
  out.arguments(value_.finish());
  if (*mark != 0) window_.put_back(marks[*mark].size());
  state_ = State::kParameters;
  return true;
}

void TaggedCalls::end_call(ToolCallWriter& out) {
  if (!first_) out.arguments("}");
  out.end();
  state_ = State::kSection;
}

void TaggedCalls::stop(ToolCallWriter& out) {
  if (state_ > State::kName) return;
  std::string rest = std::move(undecided_);
  if (state_ == State::kName) rest += function_;
  window_.take_all(rest);
  out.text(rest);
}

std::string write_tagged_calls(const TaggedCallForm& form, std::string_view text,
                               const std::vector<ExampleCall>& calls) {
  const std::string_view line = form.lines ? "\n" : "";
  std::string out(text);
  for (const auto& call : calls) {
    // One section for all calls where a section may hold several.
    if (form.lines || &call == &calls.front()) out += fmt::format("\n{}\n", form.section_begin);
    out += fmt::format("{}{}{}\n", form.call_begin, call.name, form.name_end);
    const auto arguments = ordered_json::parse(call.arguments);
    for (const auto& [key, value] : arguments.items()) {
      out += fmt::format("{}{}{}{}{}{}{}\n", form.parameter_begin, key, form.name_end, line,
                         value.is_string() ? value.get<std::string>() : value.dump(), line, form.parameter_end);
    }
    out += fmt::format("{}\n", form.call_end);
    if (form.lines || &call == &calls.back()) out += form.section_end;
  }
  return out;
}

}  // namespace sluice::parsers
