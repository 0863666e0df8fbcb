#include "engine/api/openai_api.h"

#include <gmock/gmock.h>

#include <fstream>
#include <map>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class OpenAiApiTest : public ApiTest {
 protected:
  Json load_config_of_model() const {
    std::ifstream file(std::string(SLUICE_FIXTURES_DIR) + "/" + model_ + "/config.json");
    return Json::parse(file);
  }
  // What the prompt "one" becomes with the suffix "two".
  void expect_gap(std::string_view prompt) {
    serve();
    answer_with("hi");
    const auto answer = post("/v1/completions", {{"prompt", "one"}, {"suffix", "two"}, {"echo", true}});
    ASSERT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.json()["choices"][0]["text"], "onehi");
    EXPECT_EQ(backend_->submitted().back().first.input_ids, tokenizer_->encode(prompt, true));
    EXPECT_EQ(backend_->submitted().back().first.input_ids.size(), ids("one").size() + ids("two").size() + 3);
    const auto by_ids = post("/v1/completions", {{"prompt", {1, 2}}, {"suffix", "two"}});
    EXPECT_EQ(by_ids.status, 400);
    EXPECT_THAT(by_ids.body, HasSubstr("suffix needs a prompt that is text"));
  }

  const Json hello_ = {{{"role", "user"}, {"content", "hello"}}};
};

// A rank that ends at stop strings and lengths, as ranks do, with one byte per token.
std::vector<Word> spoken(const std::vector<int32_t>& ids, std::string_view text, const GenerateRequest& request) {
  std::vector<Word> words;
  std::string so_far;
  for (size_t i = 0; i < ids.size(); ++i) {
    so_far += text[i];
    Word word{.ids = {ids[i]}};
    for (const auto& stop : request.sampling.stop) {
      if (so_far.ends_with(stop)) word.finish = {.kind = FinishKind::kStopString, .matched_string = stop};
    }
    if (i + 1 == ids.size() && word.finish.kind == FinishKind::kNone) word.finish = {.kind = FinishKind::kLength};
    words.push_back(word);
    if (word.finish.kind != FinishKind::kNone) break;
  }
  return words;
}

TEST_F(OpenAiApiTest, AnswersAChat) {
  serve();
  answer_with("hi you");
  const auto answer = post("/v1/chat/completions", {{"model", "m"}, {"messages", hello_}, {"temperature", 0}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto json = answer.json();
  const auto sent = backend_->submitted()[0].first;
  EXPECT_EQ(json["id"], sent.rid);
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], "m");
  EXPECT_EQ(json["choices"][0].dump(),
            R"({"index":0,"message":{"role":"assistant","content":"hi you","reasoning_content":null,)"
            R"("tool_calls":null},"logprobs":null,"finish_reason":"stop","matched_stop":2})");
  const auto rendered = tokenizer_->encode("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", false);
  EXPECT_EQ(sent.input_ids, rendered);
  EXPECT_EQ(json["usage"]["prompt_tokens"], rendered.size());
  EXPECT_EQ(json["usage"]["prompt_tokens_details"].dump(), R"({"cached_tokens":1})");
  EXPECT_EQ(json["metadata"]["weight_version"], "default");
  // Up to the end of the context.
  EXPECT_EQ(sent.sampling.max_new_tokens, 2048 - static_cast<int64_t>(rendered.size()) - 1);
}

TEST_F(OpenAiApiTest, StreamsAChatInTheRuntimesOrder) {
  serve();
  answer_with("hi you");
  const auto answer = post("/v1/chat/completions",
                           {{"messages", hello_}, {"stream", true}, {"stream_options", {{"include_usage", true}}}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto events = answer.events();
  ASSERT_GE(events.size(), 5u);
  const auto first = Json::parse(events[0]);
  EXPECT_EQ(first["choices"][0].dump(),
            R"({"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},)"
            R"("logprobs":null,"finish_reason":null,"matched_stop":null})");
  EXPECT_TRUE(first["usage"].is_null());
  std::string text;
  for (size_t i = 1; i + 3 < events.size(); ++i) {
    text += Json::parse(events[i])["choices"][0]["delta"]["content"].get<std::string>();
  }
  EXPECT_EQ(text, "hi you");
  EXPECT_EQ(Json::parse(events[events.size() - 3])["choices"][0].dump(),
            R"({"index":0,"delta":{"role":null,"content":null,"reasoning_content":null,"tool_calls":null},)"
            R"("logprobs":null,"finish_reason":"stop","matched_stop":2})");
  const auto usage = Json::parse(events[events.size() - 2]);
  EXPECT_EQ(usage["choices"].dump(), "[]");
  EXPECT_EQ(usage["usage"]["completion_tokens"], ids("hi you").size() + 1);
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST_F(OpenAiApiTest, ContinuousUsageIsInEveryChunk) {
  serve();
  answer_with("hi you");
  const auto events =
      post("/v1/chat/completions",
           {{"messages", hello_}, {"stream", true}, {"stream_options", {{"continuous_usage_stats", true}}}})
          .events();
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    EXPECT_TRUE(Json::parse(events[i])["usage"]["prompt_tokens"].is_number()) << events[i];
  }
}

TEST_F(OpenAiApiTest, StopStringsNeverLeakIntoAStream) {
  serve();
  const std::string text = "one##two##";
  backend_->set_script([tokens = byte_ids(text), text](const GenerateRequest& r) { return spoken(tokens, text, r); });
  for (const bool chat : {false, true}) {
    Json body = {{"stop", "##"}, {"stream", true}};
    body[chat ? "messages" : "prompt"] = chat ? hello_ : Json("x");
    const auto events = post(chat ? "/v1/chat/completions" : "/v1/completions", body).events();
    std::string shown, reason, matched;
    for (size_t i = 0; i + 1 < events.size(); ++i) {
      const auto choice = Json::parse(events[i])["choices"][0];
      const auto piece = chat ? choice["delta"]["content"] : choice["text"];
      if (piece.is_string()) shown += piece.get<std::string>();
      if (!choice["finish_reason"].is_null()) reason = choice["finish_reason"], matched = choice["matched_stop"];
    }
    EXPECT_EQ(shown, "one");
    EXPECT_EQ(reason, "stop");
    EXPECT_EQ(matched, "##");
  }
}

TEST_F(OpenAiApiTest, CompletionsTakePromptsOfEveryKind) {
  serve();
  backend_->set_script([](const GenerateRequest& r) {
    return std::vector<Word>{{.ids = r.input_ids, .finish = {.kind = FinishKind::kLength}}};
  });
  const auto one = post("/v1/completions", {{"prompt", "abc"}});
  ASSERT_EQ(one.status, 200) << one.body;
  EXPECT_EQ(one.json()["object"], "text_completion");
  EXPECT_EQ(one.json()["choices"][0].dump(),
            R"({"index":0,"text":"abc","logprobs":null,"finish_reason":"length","matched_stop":null})");
  EXPECT_EQ(backend_->submitted()[0].first.sampling.max_new_tokens, 16);
  const auto two = post("/v1/completions", {{"prompt", {"abc", "def"}}, {"echo", true}, {"rid", "R"}}).json();
  EXPECT_EQ(two["id"], "R");
  EXPECT_EQ(two["choices"][0]["text"], "abcabc");
  EXPECT_EQ(two["choices"][1]["text"], "defdef");
  EXPECT_EQ(two["usage"]["prompt_tokens"], ids("abc").size() + ids("def").size());
  const auto by_ids = post("/v1/completions", {{"prompt", {ids("abc"), ids("x")}}, {"echo", true}}).json();
  EXPECT_EQ(by_ids["choices"][1]["text"], "xx");
}

TEST_F(OpenAiApiTest, SamplesOfAPromptCountItOnce) {
  serve();
  answer_with("x");
  const auto json = post("/v1/chat/completions", {{"messages", hello_}, {"n", 3}}).json();
  ASSERT_EQ(json["choices"].size(), 3u);
  EXPECT_EQ(json["choices"][2]["index"], 2);
  EXPECT_EQ(json["usage"]["prompt_tokens"], backend_->submitted()[0].first.input_ids.size());
  EXPECT_EQ(json["usage"]["completion_tokens"], 3 * (ids("x").size() + 1));
  EXPECT_EQ(json["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
}

TEST_F(OpenAiApiTest, LogprobsComeWithTheirTokens) {
  serve();
  const int32_t a = byte_ids("a")[0], b = byte_ids("b")[0];
  backend_->set_script([a, b](const GenerateRequest& r) {
    std::vector<Word> words;
    for (const int32_t id : {a, b}) {
      PositionLogprobs scores;
      scores.chosen = TokenLogprob{-0.5f, id};
      if (r.top_logprobs_num > 0) scores.top = {{-0.25f, b}};
      words.push_back({.ids = {id}, .output_logprobs = {scores}});
    }
    words.back().finish = {.kind = FinishKind::kLength};
    return words;
  });
  const Json chat = {{"messages", hello_}, {"logprobs", true}, {"top_logprobs", 1}};
  const auto entry = [](const char* token, int byte, double logprob) {
    return Json{{"token", token}, {"bytes", {byte}}, {"logprob", logprob}};
  };
  auto first = entry("a", 97, -0.5), second = entry("b", 98, -0.5);
  first["top_logprobs"] = second["top_logprobs"] = Json::array({entry("b", 98, -0.25)});
  EXPECT_EQ(post("/v1/chat/completions", chat).json()["choices"][0]["logprobs"]["content"],
            Json::array({first, second}));
  auto streaming = chat;
  streaming["stream"] = true;
  auto content = Json::array();
  for (const auto& event : post("/v1/chat/completions", streaming).events()) {
    if (event == "[DONE]") continue;
    const auto logprobs = Json::parse(event)["choices"][0]["logprobs"];
    if (!logprobs.is_null()) content.insert(content.end(), logprobs["content"].begin(), logprobs["content"].end());
  }
  EXPECT_EQ(content, Json::array({first, second}));
  const auto completion = post("/v1/completions", {{"prompt", "x"}, {"logprobs", 0}}).json()["choices"][0]["logprobs"];
  EXPECT_EQ(completion.dump(),
            R"({"text_offset":[0,1],"token_logprobs":[-0.5,-0.5],"tokens":["a","b"],"top_logprobs":[null,null]})");
}

TEST_F(OpenAiApiTest, TheBestOfSeveralSamplesAreThoseWithTheHighestMeanLogprob) {
  serve();
  const int32_t a = byte_ids("a")[0];
  // Sums are -1, -3, -0.5 and -0.9, means -1, -0.75, -0.5 and -0.9: what is long is not punished.
  const std::vector<std::vector<float>> logprobs = {{-1}, {-0.5, -0.5, -1, -1}, {-0.5}, {-0.9f}};
  backend_->set_script([a, logprobs](const GenerateRequest& r) {
    const auto& mine = logprobs.at(static_cast<size_t>(r.rid.back() - '0') % logprobs.size());
    std::vector<Word> words;
    for (const float logprob : mine)
      words.push_back({.ids = {a}, .output_logprobs = {{.chosen = TokenLogprob{logprob, a}}}});
    words.back().finish = {.kind = FinishKind::kLength};
    if (!r.return_logprob) words.clear();  // there would be nothing to choose by
    return words;
  });
  const auto json = post("/v1/completions", {{"prompt", "x"}, {"n", 2}, {"best_of", 4}, {"rid", "R"}}).json();
  ASSERT_EQ(json["choices"].size(), 2u) << json.dump();
  EXPECT_EQ(json["choices"][0]["text"], "a");
  EXPECT_EQ(json["choices"][1]["text"], "aaaa");
  EXPECT_EQ(json["choices"][1]["index"], 1);
  EXPECT_TRUE(json["choices"][0]["logprobs"].is_null());
  EXPECT_EQ(json["usage"]["completion_tokens"], 7);  // all that were made
  // Of each prompt, with its own prompt shown.
  const auto two =
      post("/v1/completions", {{"prompt", {"x", "y"}}, {"best_of", 4}, {"rid", "R"}, {"echo", true}, {"logprobs", 0}})
          .json();
  ASSERT_EQ(two["choices"].size(), 2u) << two.dump();
  EXPECT_EQ(two["choices"][0]["text"], "xa");
  EXPECT_EQ(two["choices"][1]["text"], "ya");
  EXPECT_EQ(two["choices"][1]["logprobs"]["token_logprobs"].dump(), "[-0.5]");
  EXPECT_EQ(post("/v1/completions", {{"prompt", Json::array({"x", "y"})}, {"n", 2}, {"best_of", 1}}).status, 400);
}

TEST_F(OpenAiApiTest, ASuffixStandsBehindTheGapOfQwen) {
  tokenizer_file_ = std::string(SLUICE_FIXTURES_DIR) + "/tokenizer-qwen3";
  expect_gap("<|fim_prefix|>one<|fim_suffix|>two<|fim_middle|>");
}

TEST_F(OpenAiApiTest, ASuffixStandsBehindTheGapOfDeepSeek) {
  tokenizer_file_ = std::string(SLUICE_FIXTURES_DIR) + "/tokenizer-deepseek_v3";
  expect_gap("<｜fim▁begin｜>one<｜fim▁hole｜>two<｜fim▁end｜>");
}

TEST_F(OpenAiApiTest, AModelWithoutMarksOfAGapRefusesASuffix) {
  serve();
  const auto answer = post("/v1/completions", {{"prompt", "one"}, {"suffix", "two"}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.json()["message"].get<std::string>(), HasSubstr("suffix is not supported by this model"));
}

TEST_F(OpenAiApiTest, ChoicesHaveTheHiddenStateOfTheirLastTokenAndTheAnswerTheExperts) {
  options_.enable_return_hidden_states = options_.enable_return_routed_experts = true;
  model_ = "tiny-qwen3-moe";
  serve();
  const auto width = static_cast<size_t>(load_config_of_model()["hidden_size"].get<int>());
  backend_->set_script([width](const GenerateRequest& r) {
    std::vector<float> states((r.input_ids.size() + 1) * width, 0.5f);
    states.back() = 2;
    return std::vector<Word>{
        {.ids = {5}},
        {.ids = {6}, .finish = {.kind = FinishKind::kLength}, .hidden_states = states, .routed_experts = {1}}};
  });
  for (const bool chat : {false, true}) {
    Json body = {{"return_hidden_states", true}, {"return_routed_experts", true}};
    body[chat ? "messages" : "prompt"] = chat ? hello_ : Json("x");
    const std::string path = chat ? "/v1/chat/completions" : "/v1/completions";
    const auto json = post(path, body).json();
    ASSERT_EQ(json["choices"][0]["hidden_states"].size(), width) << json.dump();
    EXPECT_EQ(json["choices"][0]["hidden_states"].back(), 2);
    EXPECT_EQ(json["sglext"].dump(), R"({"routed_experts":"AQAAAA=="})");
    body["stream"] = true;
    const auto events = post(path, body).events();
    ASSERT_GE(events.size(), 3u);
    const auto choice = Json::parse(events[events.size() - 3])["choices"][0];
    EXPECT_EQ((chat ? choice["delta"] : choice)["hidden_states"].size(), width);
    EXPECT_EQ(Json::parse(events[events.size() - 2])["sglext"]["routed_experts"], "AQAAAA==");
  }
}

// All that were chosen, also those that no text shows.
TEST_F(OpenAiApiTest, TokenIdsOfPromptAndAnswerComeToThoseWhoAskWholeAndStreamed) {
  serve();
  answer_with("hi you");
  for (const bool chat : {false, true}) {
    Json body = {{"return_token_ids", true}, {"n", 2}, {"stop", "no such"}};
    body[chat ? "messages" : "prompt"] = chat ? hello_ : Json("x");
    const std::string path = chat ? "/v1/chat/completions" : "/v1/completions";
    const auto whole = post(path, body).json();
    const auto prompt = backend_->submitted().back().first.input_ids;
    auto tokens = ids("hi you");
    tokens.push_back(2);  // the end
    ASSERT_EQ(whole["choices"].size(), 2u) << whole.dump();
    for (const auto& choice : whole["choices"]) {
      EXPECT_EQ(choice["token_ids"], Json(tokens));
      EXPECT_EQ((chat ? whole : choice)["prompt_token_ids"], Json(prompt));
    }
    body["stream"] = true;
    std::map<int, std::vector<int32_t>> streamed;
    std::map<int, int> prompts;
    for (const auto& event : post(path, body).events()) {
      if (event == "[DONE]") continue;
      const auto chunk = Json::parse(event);
      const auto& choice = chunk["choices"][0];
      const int index = choice["index"];
      const auto& with_prompt = chat ? chunk : choice;
      if (with_prompt.contains("prompt_token_ids")) {
        ++prompts[index];
        EXPECT_EQ(with_prompt["prompt_token_ids"], Json(prompt));
        EXPECT_TRUE(chat ? streamed[index].empty() : !streamed.contains(index)) << "in the first chunk";
      }
      for (const int32_t id : choice["token_ids"]) streamed[index].push_back(id);
    }
    EXPECT_EQ(streamed, (std::map<int, std::vector<int32_t>>{{0, tokens}, {1, tokens}})) << path;
    EXPECT_EQ(prompts, (std::map<int, int>{{0, 1}, {1, 1}})) << path;
    body.erase("return_token_ids");
    EXPECT_EQ(post(path, body).body.find("token_ids"), std::string::npos);
  }
}

TEST_F(OpenAiApiTest, ErrorsHaveOneShape) {
  serve();
  const auto wrong = post("/v1/chat/completions", {{"messages", hello_}, {"temperature", -1}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_EQ(wrong.body, R"({"object":"error","message":"temperature must be a number of at least 0, got -1",)"
                        R"("type":"BadRequestError","param":null,"code":400})");
  EXPECT_EQ(call("POST", "/v1/completions", "[1]").status, 400);
  const auto longer = post("/v1/completions", {{"prompt", "x"}, {"max_tokens", 5000}, {"stream", true}});
  EXPECT_EQ(longer.status, 400);
  EXPECT_THAT(longer.body, HasSubstr("maximum context length of 2048 tokens"));
  EXPECT_EQ(post("/v1/completions", {{"prompt", "x"}, {"routed_dp_rank", 5}}).status, 400);
}

TEST_F(OpenAiApiTest, ATemplateErrorNamesItsLine) {
  use_template("{% if messages %}\n{{ raise_exception('no ' + messages[0].role) }}\n{% endif %}");
  serve();
  for (const bool stream : {false, true}) {
    const auto answer = post("/v1/chat/completions", {{"messages", hello_}, {"stream", stream}});
    EXPECT_EQ(answer.status, 400);
    EXPECT_THAT(answer.json()["message"].get<std::string>(), HasSubstr("line 2: no user"));
  }
}

TEST_F(OpenAiApiTest, AFailureInAStreamIsAnErrorEventAndBeforeItTheAnswer) {
  serve();
  const FinishReason died{.kind = FinishKind::kAbort, .message = "rank 0 died", .status_code = 503};
  const std::string error = R"({"object":"error","message":"rank 0 died","type":"503","param":null,"code":503})";
  const auto events = post_stream("/v1/chat/completions", {{"messages", hello_}}, died).events();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events[events.size() - 2], R"({"error":)" + error + "}");
  EXPECT_EQ(events.back(), "[DONE]");
  backend_->set_script([died](const GenerateRequest&) { return std::vector<Word>{{.ids = {}, .finish = died}}; });
  for (const bool stream : {false, true}) {
    const auto answer = post("/v1/chat/completions", {{"messages", hello_}, {"stream", stream}});
    EXPECT_EQ(answer.status, 503);
    EXPECT_EQ(answer.body, error);
  }
}

TEST_F(OpenAiApiTest, AClientThatLeavesAStreamAbortsIt) {
  serve();
  Client client(port_);
  client.send("POST", "/v1/chat/completions", Json{{"messages", hello_}, {"stream", true}, {"rid", "R"}}.dump());
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
  backend_->say("R", {.ids = ids("hello")});
  ASSERT_TRUE(client.read_until("hello"));
  client.leave();
  EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().empty(); }));
}

TEST_F(OpenAiApiTest, ASlowClientGetsItsTextInFewerPieces) {
  serve();
  Client client(port_);
  client.send("POST", "/v1/completions", R"({"prompt":"x","stream":true,"rid":"R"})");
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
  // Nobody reads while 16 MiB are said: far more than sockets hold.
  const std::vector<int32_t> piece(16384, byte_ids("a")[0]);
  for (int i = 0; i < 1024; ++i) backend_->say("R", {.ids = piece});
  backend_->say("R", {.ids = piece, .finish = {.kind = FinishKind::kLength}});
  const auto events = client.answer().events();
  size_t shown = 0;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    shown += Json::parse(events[i])["choices"][0]["text"].get<std::string>().size();
  }
  EXPECT_EQ(shown, 1025u * 16384);
  EXPECT_LT(events.size(), 1025u);
}

}  // namespace
}  // namespace sluice::engine
