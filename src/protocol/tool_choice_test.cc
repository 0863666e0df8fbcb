#include "protocol/tool_choice.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::protocol {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ToolChoice::Kind;

const Json kTools = Json::parse(R"([
  {"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"$ref":"#/$defs/X"}},
    "$defs":{"X":{"type":"integer"}}}}},
  {"type":"function","function":{"name":"g"}}])");

ToolChoice choice_of(const std::string& text, std::string* error = nullptr) {
  const auto json = Json::parse(text);
  Fields fields(json);
  auto choice = read_tool_choice(fields);
  EXPECT_EQ(fields.ok(), error == nullptr) << text;
  if (error != nullptr && !fields.ok()) *error = fields.error().message;
  return choice;
}

TEST(ToolChoiceTest, HasFourKinds) {
  EXPECT_EQ(choice_of("{}").kind, Kind::kAuto);
  EXPECT_EQ(choice_of(R"({"tool_choice":"none"})").kind, Kind::kNone);
  EXPECT_EQ(choice_of(R"({"tool_choice":"required"})").kind, Kind::kRequired);
  const auto named = choice_of(R"({"tool_choice":{"type":"function","function":{"name":"f"}}})");
  EXPECT_EQ(named.kind, Kind::kNamed);
  EXPECT_EQ(named.name, "f");
  std::string error;
  choice_of(R"({"tool_choice":"always"})", &error);
  EXPECT_NE(error.find("required"), std::string::npos);
  choice_of(R"({"tool_choice":{"type":"function"}})", &error);
}

TEST(ToolChoiceTest, AForcedAnswerIsAListOfCalls) {
  const auto all = forced_calls_schema({.kind = Kind::kRequired, .name = ""}, kTools, /*several=*/true);
  ASSERT_TRUE(all.ok());
  EXPECT_EQ((*all)["minItems"], 1);
  EXPECT_FALSE(all->contains("maxItems"));
  ASSERT_EQ((*all)["items"]["anyOf"].size(), 2u);
  EXPECT_EQ((*all)["items"]["anyOf"][0]["properties"]["name"]["enum"], Json({"f"}));
  EXPECT_EQ((*all)["items"]["anyOf"][1]["properties"]["parameters"], (Json{{"type", "object"}}));
  // References count from the root.
  EXPECT_EQ((*all)["$defs"]["X"]["type"], "integer");
  EXPECT_FALSE((*all)["items"]["anyOf"][0]["properties"]["parameters"].contains("$defs"));

  const auto named = forced_calls_schema({.kind = Kind::kNamed, .name = "g"}, kTools, true);
  EXPECT_EQ((*named)["maxItems"], 1);
  EXPECT_EQ((*named)["items"]["properties"]["name"]["enum"], Json({"g"}));
  EXPECT_EQ((*forced_calls_schema({.kind = Kind::kRequired, .name = ""}, kTools, false))["maxItems"], 1);
}

TEST(ToolChoiceTest, WhatCannotBeForcedIsSaid) {
  const auto message = [](const ToolChoice& choice, const Json& tools) {
    const auto schema = forced_calls_schema(choice, tools, true);
    return schema.ok() ? std::string("no error") : schema.error().message;
  };
  EXPECT_NE(message({.kind = Kind::kNamed, .name = "h"}, kTools).find("'h'"), std::string::npos);
  EXPECT_NE(message({.kind = Kind::kRequired, .name = ""}, Json::array()).find("needs tools"), std::string::npos);
  auto other = kTools;
  other[1]["function"]["parameters"] = Json::parse(R"({"$defs":{"X":{"type":"string"}}})");
  EXPECT_NE(message({.kind = Kind::kRequired, .name = ""}, other).find("$defs.X"), std::string::npos);
  other[1]["function"]["parameters"] = 5;
  EXPECT_NE(message({.kind = Kind::kRequired, .name = ""}, other).find("\"g\""), std::string::npos);
}

}  // namespace
}  // namespace sluice::protocol
