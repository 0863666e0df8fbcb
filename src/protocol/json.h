// JSON as text, the same everywhere.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace sluice::protocol {

// JSON of a value; a string that is not UTF-8 loses the bytes that are wrong instead of failing.
std::string dump(const nlohmann::ordered_json& value);

}  // namespace sluice::protocol
