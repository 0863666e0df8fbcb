#include <algorithm>

#include "parsers/deepseek_v3.h"
#include "parsers/kimi_k2.h"
#include "parsers/llama3.h"
#include "parsers/minimax_m2.h"
#include "parsers/qwen25.h"
#include "parsers/qwen3_coder.h"
#include "parsers/reasoning.h"

namespace sluice::parsers {

const std::vector<ToolCallFormat>& tool_call_formats() {
  static const std::vector<ToolCallFormat> rows = {
      deepseek_v3_format(), deepseek_v31_format(), kimi_k2_format(),     llama3_format(),
      minimax_m2_format(),  qwen25_format(),       qwen3_coder_format(),
  };
  return rows;
}

const std::vector<ReasoningFormat>& reasoning_formats() {
  // name, opening mark, closing mark, where an answer begins when its prompt does not say
  static const std::vector<ReasoningFormat> rows = {
      {"deepseek-r1", "<think>", "</think>", ReasoningFormat::Begins::kInside},
      {"deepseek-v3", "<think>", "</think>", ReasoningFormat::Begins::kOutside},
      {"kimi", "◁think▷", "◁/think▷", ReasoningFormat::Begins::kOutside},
      {"kimi_k2", "<think>", "</think>", ReasoningFormat::Begins::kOutside},
      {"minimax", "<think>", "</think>", ReasoningFormat::Begins::kInside},
      {"minimax-append-think", "<think>", "</think>", ReasoningFormat::Begins::kInText},
      {"qwen3", "<think>", "</think>", ReasoningFormat::Begins::kOutside},
      {"qwen3-thinking", "<think>", "</think>", ReasoningFormat::Begins::kInside},
  };
  return rows;
}

std::vector<std::string_view> tool_call_format_names() {
  std::vector<std::string_view> names;
  for (const auto& row : tool_call_formats()) {
    names.push_back(row.name);
    names.insert(names.end(), row.aliases.begin(), row.aliases.end());
  }
  return names;
}

const ToolCallFormat* find_tool_call_format(std::string_view name) {
  for (const auto& row : tool_call_formats()) {
    if (row.name == name || std::ranges::find(row.aliases, name) != row.aliases.end()) return &row;
  }
  return nullptr;
}

std::vector<std::string_view> reasoning_format_names() {
  std::vector<std::string_view> names;
  for (const auto& row : reasoning_formats()) names.push_back(row.name);
  return names;
}

const ReasoningFormat* find_reasoning_format(std::string_view name) {
  const auto& rows = reasoning_formats();
  const auto row = std::ranges::find(rows, name, &ReasoningFormat::name);
  return row == rows.end() ? nullptr : &*row;
}

}  // namespace sluice::parsers
