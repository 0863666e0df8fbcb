// Reads the fields of config.json, for the families' own as for the common ones.
#pragma once

#include <fmt/format.h>

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sluice::models {

// What is read, but not built.
inline Error unsupported(std::string_view field, std::string_view why) {
  return {ErrorCode::kUnimplemented, fmt::format("config.json: {}: {}", field, why)};
}

inline bool present(const nlohmann::json& object, const char* field) {
  return object.contains(field) && !object[field].is_null();
}

// Fields that ask for what is not built, whatever their value.
inline Result<void> refuse_present(const nlohmann::json& object, std::initializer_list<const char*> fields,
                                   std::string_view why) {
  for (const char* field : fields) {
    if (present(object, field)) return unsupported(field, why);
  }
  return {};
}

// Reads numbers and remembers the first field that is missing or wrong.
class Fields {
 public:
  explicit Fields(const nlohmann::json& object) : object_(object) {}

  int64_t whole(const char* field, int64_t min, std::optional<int64_t> otherwise = std::nullopt) {
    if (!present(object_, field)) {
      if (!otherwise) fail(field, "is missing");
      return otherwise.value_or(min);
    }
    const nlohmann::json& value = object_[field];
    if (!value.is_number_integer() || value.get<int64_t>() < min || value.get<int64_t>() > int64_t{1} << 32) {
      fail(field, fmt::format("{} is not a whole number of at least {}", value.dump(), min));
      return min;
    }
    return value.get<int64_t>();
  }
  // A list of whole numbers; empty where it is missing.
  std::vector<int64_t> wholes(const char* field) {
    std::vector<int64_t> values;
    if (!present(object_, field)) return values;
    const nlohmann::json& list = object_[field];
    for (const nlohmann::json& value : list) {
      if (list.is_array() && value.is_number_integer()) values.push_back(value.get<int64_t>());
    }
    if (!list.is_array() || values.size() != list.size()) {
      fail(field, fmt::format("{} is not a list of whole numbers", list.dump()));
    }
    return values;
  }
  double real(const char* field, double otherwise) {
    if (!present(object_, field)) return otherwise;
    if (!object_[field].is_number()) {
      fail(field, fmt::format("{} is not a number", object_[field].dump()));
      return otherwise;
    }
    return object_[field].get<double>();
  }
  bool flag(const char* field, bool otherwise) {
    if (!present(object_, field)) return otherwise;
    if (!object_[field].is_boolean()) {
      fail(field, fmt::format("{} is not true or false", object_[field].dump()));
      return otherwise;
    }
    return object_[field].get<bool>();
  }
  std::string text(const char* field, std::string_view otherwise) {
    if (!present(object_, field)) return std::string(otherwise);
    if (!object_[field].is_string()) {
      fail(field, fmt::format("{} is not a string", object_[field].dump()));
      return std::string(otherwise);
    }
    return object_[field].get<std::string>();
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  void fail(std::string_view field, std::string_view why) {
    if (!error_) error_ = Error{ErrorCode::kProtocol, fmt::format("config.json: {} {}", field, why)};
  }

  const nlohmann::json& object_;
  std::optional<Error> error_;
};

}  // namespace sluice::models
