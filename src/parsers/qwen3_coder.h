// Qwen3-Coder and Qwen3.5:
//   <tool_call>
//   <function=NAME>
//   <parameter=KEY>
//   value
//   </parameter>
//   </function>
//   </tool_call>
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

ToolCallFormat qwen3_coder_format();

}  // namespace sluice::parsers
