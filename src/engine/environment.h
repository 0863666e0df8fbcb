// Numbers and switches in variables of the environment, which SGLang has beside its flags.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/result.h"

namespace sluice::engine {

// Leaves `value` as it is where the variable is not set, or empty. kBadOption names the variable and its range.
template <class T>
Result<void> read_variable(const char* name, T least, T most, T& value) {
  const char* set = std::getenv(name);
  const std::string_view text = set == nullptr ? "" : set;
  if (text.empty()) return {};
  T given{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), given);
  if (problem != std::errc() || end != text.data() + text.size() || !(given >= least && given <= most)) {
    return Error{ErrorCode::kBadOption, fmt::format("{} must be in [{}, {}], not '{}'", name, least, most, text)};
  }
  value = given;
  return {};
}

// Likewise a switch: 1 and true, or 0 and false.
inline Result<void> read_variable(const char* name, bool& value) {
  const char* set = std::getenv(name);
  const std::string_view text = set == nullptr ? "" : set;
  if (text.empty()) return {};
  const bool on = text == "1" || text == "true";
  if (!on && text != "0" && text != "false") {
    return Error{ErrorCode::kBadOption, fmt::format("{} must be 1, 0, true or false, not '{}'", name, text)};
  }
  value = on;
  return {};
}

}  // namespace sluice::engine
