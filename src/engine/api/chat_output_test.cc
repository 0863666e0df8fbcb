#include "engine/api/chat_output.h"

#include <gmock/gmock.h>

#include <fstream>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const Json kTools = Json::parse(
    R"([{"type":"function","function":{"name":"get_weather","parameters":{"properties":{"city":{"type":"string"}}}}}])");
const std::string kThought = "<think>\nWhere?\n</think>\n\n";
const std::string kCall = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";

class ChatOutputTest : public ApiTest {
 protected:
  ChatOutputTest() {
    options_.reasoning_parser = "qwen3";
    options_.tool_call_parser = "qwen25";
  }
  // Every request is answered with `text`, one byte per token, and ends with the stop token or as `finish` says.
  void speak(const std::string& text, FinishReason finish = {.kind = FinishKind::kStopToken, .matched_token = 2}) {
    backend_->set_script([tokens = byte_ids(text), finish](const GenerateRequest&) {
      std::vector<Word> words;
      for (const int32_t id : tokens) words.push_back({.ids = {id}});
      words.push_back({.ids = finish.kind == FinishKind::kStopToken ? std::vector<int32_t>{2} : std::vector<int32_t>(),
                       .finish = finish});
      return words;
    });
  }
  Json body(const Json& more = Json::object()) const {
    Json out = {{"messages", {{{"role", "user"}, {"content", "hello"}}}}, {"tools", kTools}};
    out.update(more);
    return out;
  }
  Json choice(const Json& more = Json::object()) {
    const auto answer = post("/v1/chat/completions", body(more));
    EXPECT_EQ(answer.status, 200) << answer.body;
    usage_ = answer.json()["usage"];
    return answer.json()["choices"][0];
  }

  // A stream put together as clients do it.
  struct Streamed {
    std::string reasoning, content;
    size_t reasoning_chunks = 0;
    Json calls = Json::array();
    Json finish_reason, usage;
  };
  Streamed stream(const Json& more = Json::object()) {
    auto request = body(more);
    request["stream"] = true;
    request["stream_options"] = {{"include_usage", true}, {"continuous_usage_stats", true}};
    Streamed out;
    for (const auto& event : post("/v1/chat/completions", request).events()) {
      if (event == "[DONE]") continue;
      const auto json = Json::parse(event);
      out.usage = json["usage"];
      if (json["choices"].empty()) continue;
      const auto& choice = json["choices"][0];
      if (!choice["finish_reason"].is_null()) out.finish_reason = choice["finish_reason"];
      const auto& delta = choice["delta"];
      if (!delta["content"].is_null()) out.content += delta["content"].get<std::string>();
      if (!delta["reasoning_content"].is_null()) {
        out.reasoning += delta["reasoning_content"].get<std::string>();
        ++out.reasoning_chunks;
      }
      if (delta["tool_calls"].is_null()) continue;
      for (const auto& call : delta["tool_calls"]) {
        if (call["index"] == out.calls.size()) {
          EXPECT_EQ(call["type"], "function");
          out.calls.push_back(call);
          continue;
        }
        EXPECT_FALSE(call.contains("id") || call["function"].contains("name"));
        auto& arguments = out.calls[call["index"].get<size_t>()]["function"]["arguments"];
        arguments = arguments.get<std::string>() + call["function"]["arguments"].get<std::string>();
      }
    }
    return out;
  }

  Json usage_;
};

TEST_F(ChatOutputTest, AWholeAnswerHasItsParts) {
  serve();
  speak(kThought + "I look.\n" + kCall);
  const auto answer = choice();
  const auto& message = answer["message"];
  EXPECT_EQ(message["reasoning_content"], "Where?");
  EXPECT_EQ(message["content"], "I look.");
  ASSERT_EQ(message["tool_calls"].size(), 1u);
  const auto& call = message["tool_calls"][0];
  EXPECT_THAT(call["id"].get<std::string>(), ::testing::MatchesRegex("call_[0-9a-f]+"));
  EXPECT_EQ(call["type"], "function");
  EXPECT_EQ(call["function"]["name"], "get_weather");
  EXPECT_EQ(call["function"]["arguments"], R"({"city": "Bern"})");
  EXPECT_EQ(answer["finish_reason"], "tool_calls");
  EXPECT_TRUE(answer["matched_stop"].is_null());
  EXPECT_EQ(usage_["reasoning_tokens"], kThought.size() - 2) << "one byte per token, the marks included";
}

TEST_F(ChatOutputTest, AStreamHasTheSameParts) {
  serve();
  speak(kThought + "I look.\n" + kCall);
  const auto streamed = stream();
  EXPECT_EQ(streamed.reasoning, "Where?");
  EXPECT_EQ(streamed.content, "I look.");
  ASSERT_EQ(streamed.calls.size(), 1u);
  EXPECT_THAT(streamed.calls[0]["id"].get<std::string>(), StartsWith("call_"));
  EXPECT_EQ(streamed.calls[0]["function"]["arguments"], R"({"city": "Bern"})");
  EXPECT_EQ(streamed.finish_reason, "tool_calls");
  EXPECT_EQ(streamed.usage["reasoning_tokens"], kThought.size() - 2);
}

TEST_F(ChatOutputTest, ACallAloneHasNoContent) {
  serve();
  speak(kCall);
  const auto message = choice()["message"];
  EXPECT_TRUE(message["content"].is_null());
  EXPECT_TRUE(message["reasoning_content"].is_null());
  EXPECT_EQ(message["tool_calls"].size(), 1u);
}

TEST_F(ChatOutputTest, ReasoningStaysInTheTextWhereTheRequestAsksForThat) {
  serve();
  speak(kThought + "yes");
  EXPECT_EQ(choice({{"separate_reasoning", false}})["message"]["content"], kThought + "yes");
}

TEST_F(ChatOutputTest, ReasoningAndArgumentsAreStreamedAsTheyCome) {
  serve();
  Client client(port_);
  client.send("POST", "/v1/chat/completions", body({{"stream", true}, {"rid", "R"}}).dump());
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
  backend_->say("R", {.ids = byte_ids("<think>\nWhere")});
  ASSERT_TRUE(client.read_until(R"("reasoning_content":"Where")"));
  backend_->say("R", {.ids = byte_ids("?</think>" + kCall.substr(0, kCall.find("ern")))});
  ASSERT_TRUE(client.read_until(R"("arguments":"{\"city\": \"B")"));
  backend_->say("R", {.ids = byte_ids(kCall.substr(kCall.find("ern"))), .finish = {.kind = FinishKind::kLength}});
  EXPECT_THAT(client.answer().body, HasSubstr(R"("arguments":"ern\"}")"));
}

TEST_F(ChatOutputTest, ReasoningComesInOnePieceWhereTheRequestAsksForThat) {
  serve();
  Client client(port_);
  client.send("POST", "/v1/chat/completions",
              body({{"stream", true}, {"stream_reasoning", false}, {"rid", "R"}}).dump());
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
  backend_->say("R", {.ids = byte_ids("<think>\nWhere")});
  ASSERT_TRUE(client.read_until(R"("role":"assistant")"));
  backend_->say("R", {.ids = byte_ids("?</think>yes"), .finish = {.kind = FinishKind::kLength}});
  EXPECT_THAT(client.answer().body, HasSubstr(R"("reasoning_content":"Where?")"));
}

TEST_F(ChatOutputTest, WithoutToolsCallsAreText) {
  serve();
  speak("I look.\n" + kCall);
  for (const Json& more : {Json{{"tools", nullptr}}, Json{{"tool_choice", "none"}}, Json{{"tools", Json::array()}}}) {
    const auto answer = choice(more);
    EXPECT_EQ(answer["message"]["content"], "I look.\n" + kCall);
    EXPECT_TRUE(answer["message"]["tool_calls"].is_null());
    EXPECT_EQ(answer["finish_reason"], "stop");
  }
}

TEST_F(ChatOutputTest, WithoutParsersTheTextIsAsTheModelWroteIt) {
  options_.reasoning_parser.reset();
  options_.tool_call_parser.reset();
  serve();
  speak(kThought + kCall);
  EXPECT_EQ(choice()["message"]["content"], kThought + kCall);
  EXPECT_EQ(usage_["reasoning_tokens"], 0);
}

TEST_F(ChatOutputTest, OneCallAtMostWhereCallsMayNotBeParallel) {
  serve();
  speak(kCall + "\n" + kCall);
  EXPECT_EQ(choice()["message"]["tool_calls"].size(), 2u);
  EXPECT_EQ(choice({{"parallel_tool_calls", false}})["message"]["tool_calls"].size(), 1u);
  EXPECT_EQ(stream({{"parallel_tool_calls", false}}).calls.size(), 1u);
}

TEST_F(ChatOutputTest, ALengthIsALengthAlsoInACall) {
  serve();
  speak(kCall.substr(0, kCall.size() - 20), {.kind = FinishKind::kLength});
  const auto answer = choice();
  EXPECT_EQ(answer["finish_reason"], "length");
  EXPECT_EQ(answer["message"]["tool_calls"][0]["function"]["name"], "get_weather");
}

TEST_F(ChatOutputTest, SamplesHaveTheirOwnCalls) {
  serve();
  speak(kThought + kCall);
  const auto choices = post("/v1/chat/completions", body({{"n", 2}})).json()["choices"];
  ASSERT_EQ(choices.size(), 2u);
  EXPECT_NE(choices[0]["message"]["tool_calls"][0]["id"], choices[1]["message"]["tool_calls"][0]["id"]);
}

TEST_F(ChatOutputTest, APromptThatEndsInAMarkSaysWhereTheAnswerBegins) {
  serve();
  speak("Where?\n</think>\n\nyes");
  const auto prompt = [&](std::string_view text) { return Json{{"input_ids", byte_ids(text)}, {"messages", nullptr}}; };
  EXPECT_EQ(choice(prompt("hello\n<think>\n"))["message"]["reasoning_content"], "Where?");
  EXPECT_EQ(choice(prompt("hello"))["message"]["content"], "Where?\n</think>\n\nyes");
  EXPECT_EQ(choice(prompt("hello\n<think>\n\n</think>\n"))["message"]["content"], "Where?\n</think>\n\nyes");
  const Json going_on = {{"continue_final_message", true},
                         {"messages", {{{"role", "assistant"}, {"content", "<think>\nHm. "}}}}};
  EXPECT_EQ(choice(going_on)["message"]["reasoning_content"], "Where?");
}

TEST_F(ChatOutputTest, AModelThatAlwaysThinksNeedsNoOpeningMark) {
  options_.reasoning_parser = "deepseek-r1";
  serve();
  speak("Where?</think>yes");
  EXPECT_EQ(choice()["message"]["reasoning_content"], "Where?");
}

TEST_F(ChatOutputTest, OtherFamiliesHaveTheirOwnForm) {
  options_.tool_call_parser = "kimi_k2";
  serve();
  speak(
      "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:3<|tool_call_argument_begin|>"
      R"({"city": "Bern"}<|tool_call_end|><|tool_calls_section_end|>)");
  EXPECT_EQ(choice()["message"]["tool_calls"][0]["id"], "functions.get_weather:3");
  EXPECT_EQ(stream().calls[0]["id"], "functions.get_weather:3");
}

// Texts are without special tokens otherwise.
TEST(ChatParsingTest, MarksThatAreSpecialTokensAreLookedAt) {
  std::ifstream file(std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama/tokenizer.json");
  auto json = Json::parse(file);
  json["added_tokens"].push_back({{"id", 512}, {"content", "<tool_call>"}, {"special", true}});
  const auto tokenizer = *tokenizer::Tokenizer::from_json(json.dump(), "");
  FakeBackend backend(1);
  obs::Metrics metrics;
  metrics.declare(request_families(RankLabels("", 1, std::nullopt)));
  const auto needs = [&](std::string_view parser, std::string_view more) {
    ApiSettings settings;
    settings.tool_call_format = parsers::find_tool_call_format(parser);
    ServedModel model;
    model.tokenizer = tokenizer;
    const ApiContext api(settings, std::move(model), backend, metrics);
    const auto body = protocol::parse_chat_body(
        fmt::format(R"({{"messages":[{{"role":"user","content":"hi"}}],"tools":{}{}}})", kTools.dump(), more), {});
    return chat_parsing(api, *body, {}).needs_special_tokens;
  };
  EXPECT_TRUE(needs("qwen25", ""));
  EXPECT_FALSE(needs("qwen25", R"(,"tool_choice":"none")"));
  EXPECT_FALSE(needs("kimi_k2", ""));
}

TEST(ChatParsingTest, AnAnswerThatGoesOnIsInsideWhereItsPromptIs) {
  std::ifstream file(std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama/tokenizer.json");
  const auto tokenizer = *tokenizer::Tokenizer::from_json(Json::parse(file).dump(), "");
  FakeBackend backend(1);
  obs::Metrics metrics;
  metrics.declare(request_families(RankLabels("", 1, std::nullopt)));
  const auto inside = [&](std::string_view parser, const std::string& before, const std::string& prefix) {
    ApiSettings settings;
    settings.reasoning_format = parsers::find_reasoning_format(parser);
    ServedModel model;
    model.tokenizer = tokenizer;
    const ApiContext api(settings, std::move(model), backend, metrics);
    const Json body = {
        {"messages", {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", prefix}}}},
        {"continue_final_message", true}};
    const auto parsed = protocol::parse_chat_body(body.dump(), {});
    EXPECT_EQ(parsed->prefix, prefix);
    return chat_parsing(api, *parsed, tokenizer->encode(before + prefix, false)).inside;
  };
  const std::string thinks = "hi <think>", does_not = "hi <think>\n\n</think>\n\n";
  for (const char* parser : {"qwen3", "deepseek-r1"}) {
    EXPECT_TRUE(inside(parser, thinks, "Let me see")) << parser;
    EXPECT_FALSE(inside(parser, does_not, "It is")) << parser;
    EXPECT_FALSE(inside(parser, thinks, "so it is</think> It is")) << parser;
    EXPECT_TRUE(inside(parser, "hi ", "<think>Let me see")) << parser;
  }
  EXPECT_TRUE(inside("deepseek-r1", "hi ", "Let me see"));
  EXPECT_FALSE(inside("qwen3", "hi ", "It is"));
}

TEST(ChatOptionsTest, ParsersAreNamed) {
  const auto& table = engine_option_table();
  EXPECT_TRUE(
      table.parse({"--model-path", "m", "--reasoning-parser", "deepseek-r1", "--tool-call-parser", "qwen"}).ok());
  const auto wrong = table.parse({"--model-path", "m", "--tool-call-parser", "morse"});
  ASSERT_FALSE(wrong.ok());
  EXPECT_THAT(wrong.error().message, HasSubstr("minimax-m2"));
  EXPECT_FALSE(table.parse({"--model-path", "m", "--reasoning-parser", "aloud"}).ok());
}

}  // namespace
}  // namespace sluice::engine
