// DeepSeek-V3 and R1 write a call's arguments in a code block, DeepSeek-V3.1 without one:
//   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n{...}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
//   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
#pragma once

#include "parsers/tool_calls.h"

namespace sluice::parsers {

ToolCallFormat deepseek_v3_format();
ToolCallFormat deepseek_v31_format();

}  // namespace sluice::parsers
