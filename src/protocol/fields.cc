#include "protocol/fields.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace sluice::protocol {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxMembers = 1024;

// Looks at brackets and commas outside of strings only; whether it is JSON at all is the parser's question.
Result<void> check_shape(std::string_view text) {
  struct Level {
    bool object;
    size_t members;
  };
  std::vector<Level> levels;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    switch (c) {
      case '"':
        in_string = true;
        break;
      case '{':
      case '[':
        if (levels.size() == kMaxDepth) {
          return Error{ErrorCode::kInvalidArgument, fmt::format("JSON is nested deeper than {} levels", kMaxDepth)};
        }
        levels.push_back({c == '{', 1});
        break;
      case '}':
      case ']':
        if (!levels.empty()) levels.pop_back();
        break;
      case ',':
        if (!levels.empty() && levels.back().object && ++levels.back().members > kMaxMembers) {
          return Error{ErrorCode::kInvalidArgument, fmt::format("a JSON object has more than {} members", kMaxMembers)};
        }
        break;
      default:
        break;
    }
  }
  return {};
}

// What was sent, short enough for a message.
std::string excerpt(const ordered_json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  auto text = dump(value);
  if (text.size() > 60) {
    size_t cut = 57;
    while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
    text = text.substr(0, cut) + "...";
  }
  return text;
}

// Whole numbers, also when written as 3.0; nothing where the value does not fit.
std::optional<int64_t> as_integer(const ordered_json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (std::trunc(number) == number && std::abs(number) < 9e15) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

std::string describe(IntegerRange range) {
  if (range.min == INT64_MIN && range.max == INT64_MAX) return "an integer";
  if (range.max == INT64_MAX) return fmt::format("an integer of at least {}", range.min);
  return fmt::format("an integer in [{}, {}]", range.min, range.max);
}

std::string describe(NumberRange range) {
  if (range.min <= -1e308 && range.max >= 1e308) return "a number";
  if (range.max >= 1e308) return fmt::format("a number {} {}", range.open_below ? "above" : "of at least", range.min);
  return fmt::format("a number in {}{}, {}]", range.open_below ? "(" : "[", range.min, range.max);
}

}  // namespace

Result<ordered_json> parse_object(std::string_view text) {
  SLUICE_TRY_VOID(check_shape(text));
  auto value = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) return Error{ErrorCode::kInvalidArgument, "the body is not valid JSON"};
  if (!value.is_object()) return Error{ErrorCode::kInvalidArgument, "the body must be a JSON object"};
  return value;
}

std::optional<int32_t> as_token_id(const ordered_json& value) {
  const auto number = as_integer(value);
  if (!number || *number < 0 || *number > INT32_MAX) return std::nullopt;
  return static_cast<int32_t>(*number);
}

Fields::Fields(const ordered_json& object, std::string where) : object_(object), where_(std::move(where)) {}

const ordered_json* Fields::find(std::string_view name) const {
  asked_.push_back(name);
  const auto found = object_.find(std::string(name));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void Fields::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

void Fields::wrong(std::string_view name, std::string_view wanted, const ordered_json& got, bool type) {
  fail(Error{type && where_.empty() ? ErrorCode::kProtocol : ErrorCode::kInvalidArgument,
             fmt::format("{}{} must be {}, got {}", where_, name, wanted, excerpt(got))});
}

bool Fields::boolean(std::string_view name, bool otherwise) {
  const auto* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) {
    wrong(name, "true or false", *value);
    return otherwise;
  }
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(std::string_view name, IntegerRange range) {
  const auto* value = find(name);
  if (value == nullptr) return std::nullopt;
  const auto number = as_integer(*value);
  if (!number || *number < range.min || *number > range.max) {
    wrong(name, describe(range), *value, /*type=*/!number);
    return std::nullopt;
  }
  return number;
}

int64_t Fields::integer(std::string_view name, int64_t otherwise, IntegerRange range) {
  return integer(name, range).value_or(otherwise);
}

double Fields::number(std::string_view name, double otherwise, NumberRange range) {
  const auto* value = find(name);
  if (value == nullptr) return otherwise;
  const double number = value->is_number() ? value->get<double>() : NAN;
  if (!(number >= range.min && number <= range.max) || (range.open_below && number == range.min)) {
    wrong(name, describe(range), *value, /*type=*/!value->is_number());
    return otherwise;
  }
  return number;
}

std::string Fields::bounded(std::string_view name, const ordered_json& text, size_t most_bytes) {
  const auto& value = text.get_ref<const std::string&>();
  if (value.size() <= most_bytes) return value;
  fail(fmt::format("{} must have at most {} bytes, got {}", full_name(name), most_bytes, value.size()));
  return "";
}

std::string Fields::text(std::string_view name, std::string otherwise, size_t most_bytes) {
  const auto* value = find(name);
  if (value == nullptr) return otherwise;
  if (!value->is_string()) {
    wrong(name, "a string", *value);
    return otherwise;
  }
  return bounded(name, *value, most_bytes);
}

std::vector<std::string> Fields::texts(std::string_view name, size_t most_bytes) {
  const auto* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {bounded(name, *value, most_bytes)};
  std::vector<std::string> out;
  if (value->is_array()) {
    for (const auto& item : *value) {
      if (!item.is_string()) break;
      out.push_back(bounded(name, item, most_bytes));
    }
    if (out.size() == value->size()) return out;
  }
  wrong(name, "a string or a list of strings", *value);
  return {};
}

std::vector<int32_t> Fields::token_ids(std::string_view name, size_t most) {
  const auto* value = find(name);
  if (value == nullptr) return {};
  std::vector<int32_t> out;
  if (value->is_array()) {
    if (value->size() > most) {
      fail(fmt::format("{} must hold at most {} token ids, got {}", full_name(name), most, value->size()));
      return {};
    }
    out.reserve(value->size());
    for (const auto& item : *value) {
      const auto id = as_token_id(item);
      if (!id) break;
      out.push_back(*id);
    }
    if (out.size() == value->size()) return out;
  }
  wrong(name, "a list of token ids", *value);
  return {};
}

void Fields::refuse(std::string_view name, std::string_view why, std::string_view harmless) {
  const auto* value = find(name);
  if (value == nullptr || dump(*value) == harmless) return;
  // Empty lists and objects ask for nothing.
  if (value->is_structured() && value->empty()) return;
  fail(fmt::format("{}{} is not supported: {}", where_, name, why));
}

void Fields::refuse_others() {
  for (const auto& [name, value] : object_.items()) {
    if (std::ranges::find(asked_, name) != asked_.end()) continue;
    const size_t end = where_.empty() ? 0 : where_.size() - 1;
    return fail(fmt::format("{} has no field {}", end == 0 ? "the body" : where_.substr(0, end), excerpt(name)));
  }
}

}  // namespace sluice::protocol
