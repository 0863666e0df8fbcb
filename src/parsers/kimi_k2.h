// Kimi-K2. The head of a call is its id:
//   <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>
//   <|tool_calls_section_end|>
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

ToolCallFormat kimi_k2_format();

}  // namespace sluice::parsers
