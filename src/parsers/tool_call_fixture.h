// For tests of tool-call formats: what becomes of a text that comes in pieces.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "parsers/tool_calls.h"

namespace sluice::parsers {

inline const nlohmann::ordered_json& example_tools() {
  static const auto tools = nlohmann::ordered_json::parse(R"([
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
      "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
      "where": {"type": "object"}, "tags": {"type": "array"}, "height": {"type": "number"},
      "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}])");
  return tools;
}

struct Read {
  std::string text;
  struct Call {
    std::string id, name, arguments;
    bool operator==(const Call&) const = default;
  };
  std::vector<Call> calls;
  size_t deltas = 0;
  bool operator==(const Read& other) const { return text == other.text && calls == other.calls; }
};

inline std::ostream& operator<<(std::ostream& out, const Read& read) {
  out << nlohmann::ordered_json(read.text).dump();
  for (const auto& call : read.calls)
    out << " " << call.id << " " << call.name << nlohmann::ordered_json(call.arguments).dump();
  return out;
}

inline Read read_pieces(const ToolCallFormat& format, const std::vector<std::string_view>& pieces,
                        const nlohmann::ordered_json& tools = example_tools()) {
  const OfferedTools offered(tools);
  const auto parser = format.make();
  ToolCallWriter writer(offered);
  Read out;
  const auto take = [&] {
    auto news = writer.take();
    out.text += news.text;
    for (auto& delta : news.calls) {
      ++out.deltas;
      if (delta.index == out.calls.size()) {
        EXPECT_NE(delta.name, "");
        out.calls.push_back({delta.id, delta.name, delta.arguments});
        continue;
      }
      EXPECT_EQ(delta.index + 1, out.calls.size());
      EXPECT_EQ(delta.name + delta.id, "");
      out.calls.back().arguments += delta.arguments;
    }
  };
  for (const auto piece : pieces) {
    parser->push(piece, writer);
    take();
  }
  parser->finish(writer);
  take();
  return out;
}

inline Read read_whole(std::string_view format, std::string_view text) {
  return read_pieces(*find_tool_call_format(format), {text});
}

inline std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t i = 0; i < text.size();) {
    size_t n = 1;
    while (i + n < text.size() && (static_cast<unsigned char>(text[i + n]) & 0xC0) == 0x80) ++n;
    out.push_back(text.substr(i, n));
    i += n;
  }
  return out;
}

}  // namespace sluice::parsers
