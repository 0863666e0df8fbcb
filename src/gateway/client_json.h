// JSON of somebody else as a tree. Parsing needs no stack, but writing a tree out and destroying it may: a text that
// nests deeper than anybody means to is refused before.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "base/result.h"

namespace sluice::gateway {

inline constexpr int kMaxJsonDepth = 256;

// kInvalidArgument: not JSON, or nested deeper than kMaxJsonDepth.
Result<nlohmann::ordered_json> parse_client_json(std::string_view text);

}  // namespace sluice::gateway
