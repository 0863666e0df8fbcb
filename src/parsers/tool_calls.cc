#include "parsers/tool_calls.h"

#include <nlohmann/json.hpp>

#include "base/check.h"

namespace sluice::parsers {
namespace {

constexpr int kLongestChain = 16;  // of references

// Null where `json` is null, no object, or has no such member.
const nlohmann::ordered_json* member(const nlohmann::ordered_json* json, std::string_view name) {
  if (json == nullptr || !json->is_object()) return nullptr;
  const auto found = json->find(name);
  return found == json->end() ? nullptr : &*found;
}

}  // namespace

const nlohmann::ordered_json* OfferedTools::find(std::string_view name) const {
  for (const auto& tool : tools_) {
    const auto function = tool.find("function");
    if (function == tool.end() || !function->is_object()) continue;
    const auto own = function->find("name");
    if (own != function->end() && own->is_string() && own->get_ref<const std::string&>() == name) return &*function;
  }
  return nullptr;
}

bool OfferedTools::has(std::string_view name) const { return find(name) != nullptr; }

const nlohmann::ordered_json* OfferedTools::parameter(std::string_view function, std::string_view name) const {
  const auto* schema = member(find(function), "parameters");
  for (int depth = 0; schema != nullptr && depth < kLongestChain; ++depth) {
    if (const auto* found = member(member(schema, "properties"), name)) return found;
    schema = referred(function, *schema);
  }
  return nullptr;
}

const nlohmann::ordered_json* OfferedTools::referred(std::string_view function,
                                                     const nlohmann::ordered_json& schema) const {
  const auto* root = member(find(function), "parameters");
  const auto* reference = member(&schema, "$ref");
  if (root == nullptr || reference == nullptr || !reference->is_string()) return nullptr;
  const auto& text = reference->get_ref<const std::string&>();
  if (!text.starts_with('#')) return nullptr;
  try {
    const nlohmann::ordered_json::json_pointer pointer(text.substr(1));
    return root->contains(pointer) ? &root->at(pointer) : nullptr;
  } catch (const nlohmann::ordered_json::exception&) {  // no pointer at all
    return nullptr;
  }
}

void ToolCallWriter::text(std::string_view text) {
  size_t end = text.size();
  while (end > 0 && is_space(text[end - 1])) --end;
  auto shown = text.substr(0, end);
  if (!shown.empty()) {
    if (after_call_) {
      while (is_space(shown.front())) shown.remove_prefix(1);
    } else {
      news_.text += space_;
    }
    space_.clear();
    after_call_ = false;
    news_.text += shown;
  }
  if (!after_call_) space_ += text.substr(end);
}

bool ToolCallWriter::begin(std::string_view name, std::string_view id) {
  SLUICE_CHECK(!open_, "a call of {} begins inside another", name);
  if (!offered_.has(name)) return false;
  space_.clear();
  open_ = true;
  has_arguments_ = false;
  news_.calls.push_back({.index = calls_++, .id = std::string(id), .name = std::string(name), .arguments = ""});
  return true;
}

ToolCallDelta& ToolCallWriter::current() {
  if (news_.calls.empty() || news_.calls.back().index + 1 != calls_) {
    news_.calls.push_back({.index = calls_ - 1, .id = "", .name = "", .arguments = ""});
  }
  return news_.calls.back();
}

void ToolCallWriter::arguments(std::string_view json) {
  SLUICE_CHECK(open_, "arguments of no call");
  if (json.empty()) return;
  has_arguments_ = true;
  current().arguments += json;
}

void ToolCallWriter::end() {
  if (!has_arguments_) arguments("{}");
  open_ = false;
  after_call_ = true;
}

void ToolCallWriter::finish() {
  if (open_) {
    // Cut short: the arguments are as far as they came.
    open_ = false;
    after_call_ = true;
  }
  news_.text += space_;
  space_.clear();
}

}  // namespace sluice::parsers
