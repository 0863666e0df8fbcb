#include "parsers/minimax_m2.h"

#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

// As the model's guide to tool calls has it.
TEST(MinimaxM2Test, ValuesHaveTheTypesOfTheSchema) {
  const auto read = read_whole("minimax-m2", R"(<minimax:tool_call>
<invoke name="get_weather">
<parameter name="city">San "F"</parameter>
<parameter name="days">3</parameter>
<parameter name="exact">True</parameter>
<parameter name="where">{"lat": 1}</parameter>
<parameter name="height">many</parameter>
<parameter name="unit">null</parameter>
<parameter name="other">7</parameter>
</invoke>
<invoke name="now">
</invoke>
</minimax:tool_call>)");
  ASSERT_EQ(read.calls.size(), 2u);
  EXPECT_EQ(read.calls[0].arguments,
            R"({"city": "San \"F\"", "days": 3, "exact": true, "where": {"lat": 1}, "height": "many", "unit": null, )"
            R"("other": "7"})");
  EXPECT_EQ(read.calls[1].arguments, "{}");
  EXPECT_EQ(read.text, "");
}

TEST(MinimaxM2Test, KeepsWhiteSpaceOfValues) {
  const auto read = read_whole("minimax-m2",
                               "<minimax:tool_call><invoke name=\"get_weather\"><parameter name=\"city\">\n a\n\n"
                               "</parameter></invoke></minimax:tool_call>");
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"city": "\n a\n\n"})");
}

// As Pydantic writes them, and other forms that do not name a type.
TEST(MinimaxM2Test, SchemasMayReferToOthersAndLeaveTheTypeOut) {
  const auto tools = nlohmann::ordered_json::parse(R"([{"type": "function", "function": {"name": "draw", "parameters": {
    "$defs": {"Args": {"type": "object", "properties": {
                "at": {"$ref": "#/$defs/Point"}, "to": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]},
                "size": {"properties": {"w": {}}}, "tags": {"items": {}}, "two": {"const": 2},
                "way": {"$ref": "#/$defs/Way"}, "loop": {"$ref": "#/$defs/Loop"}, "lost": {"$ref": "#/$defs/Lost"},
                "bad": {"$ref": "#a"}, "far": {"$ref": "https://example.com/a"}, "tilde": {"$ref": "#/$defs/a~1b"}}},
              "Point": {"type": "object", "properties": {"x": {"type": "integer"}}}, "Way": {"enum": [1, 2]},
              "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"$ref": "#/$defs/Loop"}, {"type": "integer"}]},
              "a/b": {"type": "boolean"}},
    "$ref": "#/$defs/Args"}}}])");
  std::string text = "<minimax:tool_call>\n<invoke name=\"draw\">\n";
  const std::pair<const char*, const char*> values[] = {
      {"at", R"({"x": 1})"}, {"to", "null"}, {"size", R"({"w": 2})"}, {"tags", "[1]"},
      {"two", "2"},          {"way", "1"},   {"loop", "3"},           {"lost", "4"},
      {"bad", "5"},          {"far", "6"},   {"tilde", "true"}};
  for (const auto& [name, value] : values) text += fmt::format("<parameter name=\"{}\">{}</parameter>\n", name, value);
  text += "</invoke>\n</minimax:tool_call>";
  const auto read = read_pieces(*find_tool_call_format("minimax-m2"), {text}, tools);
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(
      read.calls[0].arguments,
      R"({"at": {"x": 1}, "to": null, "size": {"w": 2}, "tags": [1], "two": 2, "way": 1, "loop": 3, "lost": "4", )"
      R"("bad": "5", "far": "6", "tilde": true})");
}

TEST(MinimaxM2Test, ReferencesInCirclesEnd) {
  const auto tools = nlohmann::ordered_json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {
    "$ref": "#", "properties": {"a": {"$ref": "#/properties/a"}}}}}])");
  const auto read = read_pieces(*find_tool_call_format("minimax-m2"),
                                {"<minimax:tool_call><invoke name=\"f\"><parameter name=\"a\">1</parameter>"
                                 "<parameter name=\"b\">2</parameter></invoke></minimax:tool_call>"},
                                tools);
  ASSERT_EQ(read.calls.size(), 1u);
  EXPECT_EQ(read.calls[0].arguments, R"({"a": "1", "b": "2"})");
}

}  // namespace
}  // namespace sluice::parsers
