#include "engine/api/parse_api.h"

#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

using ParseApiTest = ApiTest;

const Json kTools = Json::parse(R"([{"type":"function","function":{"name":"now"}}])");

TEST_F(ParseApiTest, FindsCallsInAText) {
  serve();
  const Json body = {{"text", "So. <tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>"},
                     {"tools", kTools},
                     {"tool_call_parser", "qwen25"}};
  EXPECT_EQ(post("/parse_function_call", body).body,
            R"({"normal_text":"So.","calls":[{"tool_index":0,"name":"now","parameters":"{}"}]})");
}

TEST_F(ParseApiTest, SeparatesReasoning) {
  serve();
  const auto parts = [&](const char* parser, const char* text) {
    return post("/separate_reasoning", {{"text", text}, {"reasoning_parser", parser}}).body;
  };
  EXPECT_EQ(parts("qwen3", "<think>hm</think>yes"), R"({"reasoning_text":"hm","text":"yes"})");
  EXPECT_EQ(parts("deepseek-r1", "hm</think>yes"), R"({"reasoning_text":"hm","text":"yes"})");
  EXPECT_EQ(parts("qwen3", "yes"), R"({"reasoning_text":"","text":"yes"})");
}

TEST_F(ParseApiTest, TheServersParsersAreTheDefault) {
  options_.reasoning_parser = "kimi";
  options_.tool_call_parser = "llama3";
  serve();
  EXPECT_EQ(post("/separate_reasoning", {{"text", "◁think▷hm◁/think▷yes"}}).json()["reasoning_text"], "hm");
  EXPECT_EQ(post("/parse_function_call", {{"text", "{\"name\": \"now\"}"}, {"tools", kTools}}).json()["calls"].size(),
            1u);
}

TEST_F(ParseApiTest, NamesWhatIsWrong) {
  serve();
  const auto error = [&](const std::string& path, const Json& body) {
    const auto answer = post(path, body);
    EXPECT_EQ(answer.status, 400);
    return answer.json()["message"].get<std::string>();
  };
  EXPECT_THAT(error("/separate_reasoning", {{"text", "a"}, {"reasoning_parser", "aloud"}}), HasSubstr("deepseek-r1"));
  EXPECT_THAT(error("/separate_reasoning", {{"reasoning_parser", "qwen3"}}), HasSubstr("text"));
  EXPECT_THAT(error("/parse_function_call", {{"text", "a"}, {"tools", kTools}}), HasSubstr("minimax-m2"));
  EXPECT_THAT(error("/parse_function_call", {{"text", "a"}, {"tool_call_parser", "qwen"}}), HasSubstr("tools"));
}

}  // namespace
}  // namespace sluice::engine
