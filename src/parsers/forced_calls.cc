#include "parsers/forced_calls.h"

#include <algorithm>

#include "parsers/call_object.h"

namespace sluice::parsers {
namespace {

class ForcedCalls final : public ToolCallParser {
  bool step(ToolCallWriter& out) override {
    if (!inside_) {
      // The brackets, the commas and the white space of the list.
      const auto rest = window_.rest();
      const size_t skip = std::min(rest.find('{'), rest.size());
      window_.drop(skip);
      if (window_.empty()) return false;
      inside_ = true;
      object_ = CallObject();
    }
    if (object_.take(window_, out) == CallObject::Status::kMore) return false;
    inside_ = false;
    return true;
  }

  void stop(ToolCallWriter& out) override {
    // Cut by its length: a call as far as it came.
    if (inside_ && object_.called()) out.end();
  }

  bool inside_ = false;
  CallObject object_;
};

std::string write(std::string_view /*text*/, const std::vector<ExampleCall>& calls) {
  std::string out = "[";
  for (const auto& call : calls) {
    if (out.size() > 1) out += ", ";
    out += R"({"name": ")" + call.name + R"(", "parameters": )" + call.arguments + "}";
  }
  return out + "]";
}

}  // namespace

const ToolCallFormat& forced_calls_format() {
  static const ToolCallFormat format{
      .name = "forced",
      .aliases = {},
      .make = [] { return std::unique_ptr<ToolCallParser>(std::make_unique<ForcedCalls>()); },
      .opens = {},
      .marks = {},
      .example = write};
  return format;
}

}  // namespace sluice::parsers
