// Grammars, forced calls and what SGLang adds to answers, as requests of clients reach the ranks and come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "engine/api/api_fixture.h"
#include "engine/grammar/grammar.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class StructuredApiTest : public ApiTest {
 protected:
  StructuredApiTest() { use_template("{% for m in messages %}{{ m.content }}{% endfor %}"); }
  static Json chat(const std::string& more) {
    return Json::parse(R"({"messages":[{"role":"user","content":"hi"}])" + more + "}");
  }
  const SamplingParams& sent() {
    submitted_ = backend_->submitted();
    return submitted_.back().first.sampling;
  }
  // Every request gets this text, byte by byte.
  void say(const std::string& text) {
    backend_->set_script([tokens = byte_ids(text)](const GenerateRequest&) {
      std::vector<Word> words;
      for (const int32_t id : tokens) words.push_back({.ids = {id}});
      words.push_back({.ids = {2}, .finish = {.kind = FinishKind::kStopToken, .matched_token = 2}});
      return words;
    });
  }

  std::vector<std::pair<GenerateRequest, int64_t>> submitted_;
  const std::string tools_ = R"(,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}])";
};

TEST_F(StructuredApiTest, GrammarsReachTheRank) {
  if (find_grammar_backend("xgrammar") == nullptr) GTEST_SKIP() << "this build is without grammars";
  serve();
  answer_with("x");
  EXPECT_EQ(post("/generate", {{"text", "a"}, {"sampling_params", {{"regex", "x+"}, {"stop_regex", "y"}}}}).status,
            200);
  EXPECT_EQ(sent().grammar_kind, GrammarKind::kRegex);
  EXPECT_EQ(sent().grammar, "x+");
  EXPECT_EQ(sent().stop_regex, std::vector<std::string>{"y"});
  EXPECT_EQ(sent().grammar_after, -1);
  EXPECT_EQ(post("/v1/completions", {{"prompt", "a"}, {"ebnf", "root ::= \"x\""}}).status, 200);
  EXPECT_EQ(sent().grammar_kind, GrammarKind::kEbnf);
  EXPECT_EQ(post("/v1/chat/completions", chat(R"(,"response_format":{"type":"json_object"})")).status, 200);
  EXPECT_EQ(sent().grammar_kind, GrammarKind::kJsonSchema);
  EXPECT_EQ(post("/generate", {{"text", "a"}}).status, 200);
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr("sglang:num_so_requests_total{model_name=\"tiny\"} 3\n"));
}

TEST_F(StructuredApiTest, WithoutABackendTheFieldIsNamed) {
  options_.grammar_backend = "none";
  serve();
  for (const auto& answer : {post("/generate", {{"text", "a"}, {"sampling_params", {{"regex", "x+"}}}}),
                             post("/v1/completions", {{"prompt", "a"}, {"regex", "x+"}})}) {
    EXPECT_EQ(answer.status, 400);
    EXPECT_THAT(answer.body, HasSubstr("regex is not supported"));
  }
  const auto forced = post("/v1/chat/completions", chat(tools_ + R"(,"tool_choice":"required")"));
  EXPECT_EQ(forced.status, 400);
  EXPECT_THAT(forced.body, HasSubstr("tool_choice is not supported"));
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(StructuredApiTest, AForcedCallIsACallWithoutAnyParser) {
  if (find_grammar_backend("xgrammar") == nullptr) GTEST_SKIP() << "this build is without grammars";
  serve();
  say(R"([{"name": "f", "parameters": {"x": 1}}])");
  const Json body = chat(tools_ + R"(,"tool_choice":{"type":"function","function":{"name":"f"}})");
  const auto choice = post("/v1/chat/completions", body).json()["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
  EXPECT_EQ(choice["message"]["content"], nullptr);
  ASSERT_EQ(choice["message"]["tool_calls"].size(), 1u);
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["name"], "f");
  EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["arguments"], R"({"x": 1})");

  Json streamed = body;
  streamed["stream"] = true;
  std::string name, arguments, finish;
  for (const auto& event : post("/v1/chat/completions", streamed).events()) {
    if (event == "[DONE]") continue;
    const auto part = Json::parse(event)["choices"][0];
    if (part["finish_reason"].is_string()) finish = part["finish_reason"];
    if (!part["delta"]["tool_calls"].is_array()) continue;
    const auto& function = part["delta"]["tool_calls"][0]["function"];
    if (function.contains("name") && function["name"].is_string()) name += function["name"].get<std::string>();
    if (function["arguments"].is_string()) arguments += function["arguments"].get<std::string>();
  }
  EXPECT_EQ(name, "f");
  EXPECT_EQ(arguments, R"({"x": 1})");
  EXPECT_EQ(finish, "tool_calls");
}

TEST_F(StructuredApiTest, AGrammarBeginsAfterTheThoughts) {
  if (find_grammar_backend("xgrammar") == nullptr) GTEST_SKIP() << "this build is without grammars";
  options_.reasoning_parser = "deepseek-r1";
  serve();
  answer_with("x");
  EXPECT_EQ(post("/v1/chat/completions", chat(R"(,"response_format":{"type":"json_object"})")).status, 200);
  const auto close = tokenizer_->id_of("</think>");
  EXPECT_EQ(sent().grammar_after, close ? *close : -1);
}

TEST_F(StructuredApiTest, AGrammarBeginsAfterTheThoughtsAlsoWhereTheyStayInTheText) {
  if (find_grammar_backend("xgrammar") == nullptr) GTEST_SKIP() << "this build is without grammars";
  options_.reasoning_parser = "deepseek-r1";
  std::ifstream in(std::string(SLUICE_FIXTURES_DIR) + "/tiny-llama/tokenizer.json");
  Json vocabulary = Json::parse(in);
  vocabulary["added_tokens"].push_back({{"id", 512},
                                        {"content", "</think>"},
                                        {"single_word", false},
                                        {"lstrip", false},
                                        {"rstrip", false},
                                        {"normalized", false},
                                        {"special", false}});
  const auto folder = std::filesystem::path(::testing::TempDir()) / fmt::format("structured-{}", ::getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.json") << vocabulary;
  tokenizer_file_ = folder;
  serve();
  std::filesystem::remove_all(folder);
  answer_with("x");
  for (const char* separate : {"true", "false"}) {
    const auto body =
        chat(fmt::format(R"(,"response_format":{{"type":"json_object"}},"separate_reasoning":{})", separate));
    EXPECT_EQ(post("/v1/chat/completions", body).status, 200);
    EXPECT_EQ(sent().grammar_after, 512) << separate;
  }
}

TEST_F(StructuredApiTest, CachedTokensCanBeToldApartByTheirCache) {
  serve();
  answer_with("x");
  Json body = {{"prompt", "a"}, {"return_cached_tokens_details", true}};
  EXPECT_EQ(post("/v1/completions", body).json()["sglext"]["cached_tokens_details"],
            (Json{{"device", 1}, {"host", 0}}));
  EXPECT_FALSE(post("/v1/completions", {{"prompt", "a"}}).json().contains("sglext"));
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const auto events = post("/v1/completions", body).events();
  ASSERT_GE(events.size(), 3u);
  const auto extension = Json::parse(events[events.size() - 3]);
  EXPECT_EQ(extension["sglext"]["cached_tokens_details"]["device"], 1);
  EXPECT_TRUE(extension["choices"].empty());
  EXPECT_TRUE(Json::parse(events[events.size() - 2])["usage"].is_object());
}

}  // namespace
}  // namespace sluice::engine
