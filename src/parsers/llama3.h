// Llama 3.1 to 3.3: an answer that is an object, or what follows <|python_tag|>; several separated by semicolons, or as
// a list:
//   <|python_tag|>{"name": "NAME", "parameters": {...}}; {"name": ...}
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

ToolCallFormat llama3_format();

}  // namespace sluice::parsers
