// MiniMax-M2:
//   <minimax:tool_call>
//   <invoke name="NAME">
//   <parameter name="KEY">value</parameter>
//   </invoke>
//   </minimax:tool_call>
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

ToolCallFormat minimax_m2_format();

}  // namespace sluice::parsers
