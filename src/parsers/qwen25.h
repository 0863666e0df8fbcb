// Qwen2.5 and Qwen3 (and other models in the form of Hermes):
//   <tool_call>
//   {"name": "NAME", "arguments": {...}}
//   </tool_call>
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

ToolCallFormat qwen25_format();

}  // namespace sluice::parsers
