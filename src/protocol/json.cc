#include "protocol/json.h"

#include <nlohmann/json.hpp>

namespace sluice::protocol {

std::string dump(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace sluice::protocol
