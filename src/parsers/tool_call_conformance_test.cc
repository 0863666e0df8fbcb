// What every format of tool calls must do, for each row of the registry without naming it.
#include <gtest/gtest.h>

#include <algorithm>

#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "parsers/reasoning.h"
#include "parsers/tool_call_fixture.h"

namespace sluice::parsers {
namespace {

using Json = nlohmann::ordered_json;

// In one piece, in two at every place, one by one, and in random pieces: always the same.
Read read_every_way(const ToolCallFormat& format, std::string_view text) {
  const Read whole = read_pieces(format, {text});
  const auto single = characters(text);
  EXPECT_EQ(read_pieces(format, single), whole) << text;
  size_t at = 0;
  for (const auto character : single) {
    at += character.size();
    EXPECT_EQ(read_pieces(format, {text.substr(0, at), text.substr(at)}), whole) << text << " cut at " << at;
  }
  Rng rng(7);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::string_view> pieces;
    for (size_t i = 0; i < single.size();) {
      const size_t n = std::min<size_t>(1 + rng.below(12), single.size() - i);
      pieces.emplace_back(single[i].data(), static_cast<size_t>(single[i + n - 1].end() - single[i].begin()));
      i += n;
    }
    EXPECT_EQ(read_pieces(format, pieces), whole) << text;
  }
  return whole;
}

class ToolCallConformance : public ::testing::TestWithParam<ToolCallFormat> {};

const std::string kWeather =
    R"({"city": "Zürich, \"Höngg\"\n<b>{a}</b>", "days": 3, "exact": true, "where": {"x": [1, "}"]}, )"
    R"("tags": ["a", {"b": null}], "height": -1.5e3, "unit": null})";

TEST_P(ToolCallConformance, ReadsWhatModelsWrite) {
  const auto& format = GetParam();
  for (const std::string text : {"", "I look.\nWait.", "  ≤ 3 {x} <not> [a] call  "}) {
    const std::vector<ExampleCall> calls = {{"get_weather", "functions.get_weather:0", kWeather},
                                            {"now", "functions.now:1", "{}"},
                                            {"get_weather", "functions.get_weather:2", R"({"city": ""})"}};
    const auto read = read_every_way(format, format.example(text, calls));
    EXPECT_EQ(trimmed(read.text), trimmed(text));
    EXPECT_TRUE(read.text.empty() || !is_space(read.text.back())) << "white space before a call is not text";
    ASSERT_EQ(read.calls.size(), calls.size()) << read;
    for (size_t i = 0; i < calls.size(); ++i) {
      EXPECT_EQ(read.calls[i].name, calls[i].name);
      EXPECT_EQ(read.calls[i].id, format.has_ids ? calls[i].id : "");
      EXPECT_EQ(Json::parse(read.calls[i].arguments), Json::parse(calls[i].arguments)) << read.calls[i].arguments;
    }
  }
}

TEST_P(ToolCallConformance, StreamsArgumentsAsTheyCome) {
  const auto& format = GetParam();
  std::string poem;
  for (int i = 0; i < 100; ++i) poem += "roses are red ";
  const auto text = format.example("", {{"get_weather", "", Json{{"city", poem}}.dump()}});
  EXPECT_GT(read_pieces(format, characters(text)).deltas, 1000u);
}

TEST_P(ToolCallConformance, LeavesTextAlone) {
  const auto& format = GetParam();
  for (const std::string text : {"", " ", "Hello.", "\n\nA list:\n * one\n", "1 < 2 and <b> {\"a\": 1} </b>", "[1, 2]",
                                 "{\"answer\": {\"name\": \"now\"}}", "{}", "{", "[", "<", "<tool", "𝄞 <｜tool"}) {
    const auto read = read_every_way(format, text);
    EXPECT_EQ(read.text, text);
    EXPECT_TRUE(read.calls.empty());
  }
}

TEST_P(ToolCallConformance, AFunctionThatIsNotOfferedIsText) {
  const auto& format = GetParam();
  const auto text = format.example("Now", {{"launch", "functions.launch:0", R"({"at": "dawn"})"}});
  const auto read = read_every_way(format, text);
  EXPECT_EQ(read.text, text);
  EXPECT_TRUE(read.calls.empty());
}

TEST_P(ToolCallConformance, WhatIsCutShortIsTextOrACallAsFarAsItCame) {
  const auto& format = GetParam();
  const auto text =
      format.example("Look.", {{"get_weather", "functions.get_weather:0", R"({"city": "Bern", "days": 2})"}});
  const auto whole = read_pieces(format, {text});
  const auto single = characters(text);
  std::string so_far;
  for (const auto character : single) {
    so_far += character;
    const auto read = read_pieces(format, {so_far});
    EXPECT_EQ(read, read_pieces(format, characters(so_far)));
    if (read.calls.empty()) {
      EXPECT_EQ(read.text, so_far);
    } else {
      // At most the beginning of a closing mark.
      ASSERT_TRUE(read.text.starts_with("Look."));
      const auto more = read.text.substr(5);
      EXPECT_TRUE(more.empty() || std::ranges::any_of(format.marks, [&](auto mark) { return mark.starts_with(more); }))
          << more;
      EXPECT_EQ(read.calls[0].name, "get_weather");
      EXPECT_TRUE(whole.calls[0].arguments.starts_with(read.calls[0].arguments)) << read.calls[0].arguments;
    }
  }
}

// Marks, names and brackets in any order: no piece of text makes a difference, and nothing ends the process.
TEST_P(ToolCallConformance, SurvivesAnyTextTheSameWayInAnyPieces) {
  const auto& format = GetParam();
  const auto example = format.example("Go", {{"get_weather", "", kWeather}, {"now", "", "{}"}});
  std::vector<std::string> words = {"get_weather",
                                    "now",
                                    "\n",
                                    " ",
                                    "{",
                                    "}",
                                    "\"",
                                    ":",
                                    ",",
                                    "\\",
                                    "name",
                                    "\"name\": \"now\"",
                                    "\"arguments\": ",
                                    "null",
                                    "functions.now:0",
                                    "```json\n",
                                    "<",
                                    ">",
                                    "é",
                                    "null"};
  for (const auto& row : tool_call_formats()) words.insert(words.end(), row.marks.begin(), row.marks.end());
  Rng rng(11);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    if (rng.below(2) == 0) {
      for (uint64_t n = rng.below(20); n > 0; --n) text += words[rng.below(words.size())];
    } else {
      // The example with something left out, and something put in.
      const auto single = characters(example);
      const size_t at = rng.below(single.size()), left_out = rng.below(10), put_in = rng.below(single.size());
      for (size_t i = 0; i < single.size(); ++i) {
        if (i == put_in) text += words[rng.below(words.size())];
        if (i < at || i > at + left_out) text += single[i];
      }
    }
    const auto whole = read_pieces(format, {text});
    EXPECT_EQ(read_pieces(format, characters(text)), whole) << text;
    const size_t middle = rng.below(characters(text).size() + 1);
    size_t cut = 0;
    for (size_t i = 0; i < middle; ++i) cut += characters(text)[i].size();
    EXPECT_EQ(read_pieces(format, {std::string_view(text).substr(0, cut), std::string_view(text).substr(cut)}), whole)
        << text;
  }
}

TEST_P(ToolCallConformance, ItsCallsEndReasoningThatWasLeftOpen) {
  const auto& format = GetParam();
  const auto text = "I need the weather.\n" + format.example(" ", {{"now", "functions.now:0", "{}"}});
  for (const auto& reasoning_format : reasoning_formats()) {
    if (reasoning_format.begins != ReasoningFormat::Begins::kInside) continue;
    ReasoningSplitter splitter(reasoning_format, true, true, format.opens);
    std::string reasoning, answer;
    for (const auto character : characters(text)) splitter.push(character, reasoning, answer);
    splitter.finish(reasoning, answer);
    EXPECT_EQ(reasoning, "I need the weather.");
    EXPECT_EQ(read_pieces(format, {answer}).calls.size(), 1u) << answer;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ToolCallConformance, ::testing::ValuesIn(tool_call_formats()), [](const auto& info) {
  std::string name(info.param.name);
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST(ToolCallFormatsTest, NamesAreFound) {
  for (const auto name : tool_call_format_names()) {
    ASSERT_NE(find_tool_call_format(name), nullptr) << name;
  }
  EXPECT_EQ(find_tool_call_format("qwen"), find_tool_call_format("qwen25"));
  EXPECT_EQ(find_tool_call_format("morse"), nullptr);
}

}  // namespace
}  // namespace sluice::parsers
