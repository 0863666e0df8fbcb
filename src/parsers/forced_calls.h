// Calls that a grammar has forced (tool_choice "required" or a named function), whatever form the model has been
// taught:
//   [{"name": "NAME", "parameters": {...}}, ...]
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

// No row of the registry: nobody chooses it by name.
const ToolCallFormat& forced_calls_format();

}  // namespace sluice::parsers
