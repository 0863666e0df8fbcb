// Numbers in variables of the environment, which SGLang has beside its flags.
#pragma once

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

}  // namespace sluice::engine
