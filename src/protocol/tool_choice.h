// tool_choice of a chat: whether functions are offered, and whether the answer must be calls of them.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "protocol/fields.h"

namespace sluice::protocol {

struct ToolChoice {
  enum class Kind { kAuto, kNone, kRequired, kNamed };
  Kind kind = Kind::kAuto;
  std::string name;  // kNamed

  bool forced() const { return kind == Kind::kRequired || kind == Kind::kNamed; }
};
ToolChoice read_tool_choice(Fields& fields);

// The JSON schema that a forced answer is held to: a list of {"name", "parameters"} of the functions in `tools`, or of
// the named one. `several` false: one call at most. kInvalidArgument when there is no such function, or definitions of
// one name differ.
Result<nlohmann::ordered_json> forced_calls_schema(const ToolChoice& choice, const nlohmann::ordered_json& tools,
                                                   bool several);

}  // namespace sluice::protocol
