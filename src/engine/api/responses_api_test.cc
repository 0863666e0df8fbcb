#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ResponsesApiTest : public ApiTest {
 protected:
  ResponsesApiTest() {
    template_file_ = ::testing::TempDir() + "responses.jinja";
    std::ofstream(template_file_) << "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
  }
  std::string prompt() const { return tokenizer_->decode(backend_->submitted().back().first.input_ids, false); }
};

TEST_F(ResponsesApiTest, AnswersText) {
  serve();
  answer_with("hello world");
  const auto answer = post("/v1/responses",
                           {{"input", "hi"}, {"instructions", "Be kind."}, {"model", "m"}, {"metadata", {{"k", "v"}}}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto body = answer.json();
  EXPECT_EQ(body["object"], "response");
  EXPECT_EQ(body["status"], "completed");
  EXPECT_EQ(body["model"], "m");
  EXPECT_EQ(body["metadata"]["k"], "v");
  EXPECT_EQ(body["output"][0]["role"], "assistant");
  EXPECT_EQ(body["output"][0]["content"][0]["text"], "hello world");
  EXPECT_EQ(body["usage"]["input_tokens_details"]["cached_tokens"], 1);
  EXPECT_EQ(prompt(), "system:Be kind.;user:hi;");
}

TEST_F(ResponsesApiTest, TakesMessagesWithPartsAndALength) {
  serve();
  backend_->set_script([this](const GenerateRequest&) {
    return std::vector<Word>{{.ids = ids("cut"), .finish = {.kind = FinishKind::kLength}}};
  });
  const auto answer = post("/v1/responses", Json::parse(R"({"max_output_tokens": 3, "input": [
      {"role": "developer", "content": "d"},
      {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
      {"role": "assistant", "content": [{"type": "output_text", "text": "c"}]}]})"));
  EXPECT_EQ(answer.json()["status"], "incomplete");
  EXPECT_EQ(answer.json()["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(prompt(), "system:d;user:ab;assistant:c;");
  EXPECT_EQ(backend_->submitted().back().first.sampling.max_new_tokens, 3);
}

TEST_F(ResponsesApiTest, StreamsItsEventsInOrder) {
  serve();
  answer_with("hello world");
  const auto events = post("/v1/responses", {{"input", "hi"}, {"stream", true}}).events();
  std::vector<std::string> types;
  std::string text;
  int64_t number = 0;
  for (const auto& event : events) {
    if (event == "[DONE]") continue;
    const auto data = Json::parse(event);
    EXPECT_EQ(data["sequence_number"], number++);
    if (types.empty() || types.back() != data["type"]) types.push_back(data["type"]);
    if (data["type"] == "response.output_text.delta") text += data["delta"].get<std::string>();
    if (data["type"] == "response.completed") {
      EXPECT_EQ(data["response"]["output"][0]["content"][0]["text"], "hello world");
    }
  }
  EXPECT_EQ(text, "hello world");
  EXPECT_THAT(types,
              ElementsAre("response.created", "response.in_progress", "response.output_item.added",
                          "response.content_part.added", "response.output_text.delta", "response.output_text.done",
                          "response.content_part.done", "response.output_item.done", "response.completed"));
}

TEST_F(ResponsesApiTest, ReasoningIsNoPartOfTheText) {
  options_.reasoning_parser = "qwen3";
  serve();
  backend_->set_script([tokens = byte_ids("<think>\nHm.\n</think>\n\n{}")](const GenerateRequest&) {
    std::vector<Word> words;
    for (const int32_t id : tokens) words.push_back({.ids = {id}});
    words.push_back({.ids = {2}, .finish = {.kind = FinishKind::kStopToken, .matched_token = 2}});
    return words;
  });
  Json body = {{"input", "hi"}};
  const auto whole = post("/v1/responses", body).json();
  EXPECT_EQ(whole["output"][0]["content"][0]["text"], "{}");
  EXPECT_GT(whole["usage"]["output_tokens_details"]["reasoning_tokens"], 0);
  body["stream"] = true;
  std::string text;
  Json last;
  for (const auto& event : post("/v1/responses", body).events()) {
    if (event == "[DONE]") continue;
    last = Json::parse(event);
    if (last["type"] == "response.output_text.delta") text += last["delta"].get<std::string>();
  }
  EXPECT_EQ(text, "{}");
  EXPECT_EQ(last["response"]["output"][0]["content"][0]["text"], "{}");
  EXPECT_EQ(last["response"]["usage"]["output_tokens_details"], whole["usage"]["output_tokens_details"]);
  body = {{"input", "hi"}, {"separate_reasoning", false}};
  EXPECT_THAT(post("/v1/responses", body).json()["output"][0]["content"][0]["text"].get<std::string>(),
              HasSubstr("</think>"));
}

TEST_F(ResponsesApiTest, SamplingFieldsReachTheRank) {
  serve();
  answer_with("1");
  const auto answer = post("/v1/responses", Json::parse(R"({"input": "a", "min_tokens": 2, "stop_token_ids": [7],
      "stop_regex": "y", "logit_bias": {"5": 1}, "no_stop_trim": true, "routing_key": "k"})"));
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto sent = backend_->submitted().back().first;
  EXPECT_EQ(sent.sampling.min_new_tokens, 2);
  EXPECT_THAT(sent.sampling.stop_token_ids, ElementsAre(7));
  EXPECT_THAT(sent.sampling.stop_regex, ElementsAre("y"));
  EXPECT_EQ(sent.sampling.logit_bias.at(5), 1);
  EXPECT_EQ(sent.routing_key, "k");
  // What is shown of the end.
  EXPECT_EQ(post("/v1/responses", {{"input", "a"}, {"no_stop_trim", true}, {"skip_special_tokens", false}})
                .json()["output"][0]["content"][0]["text"],
            "1<|im_end|>");
  for (const char* name : {"regex", "ebnf", "json_schema", "structural_tag"}) {
    const auto wrong = post("/v1/responses", {{"input", "a"}, {name, ""}});
    EXPECT_EQ(wrong.status, 400) << name;
    EXPECT_THAT(wrong.body, HasSubstr(name));
  }
}

TEST_F(ResponsesApiTest, AFormatIsAGrammar) {
  serve();
  answer_with("1");
  const auto answer = post("/v1/responses", Json::parse(R"({"input": "a", "text": {"format":
      {"type": "json_schema", "name": "n", "schema": {"type": "integer"}}}})"));
  EXPECT_EQ(answer.status, 200) << answer.body;
  EXPECT_EQ(backend_->submitted().back().first.sampling.grammar, R"({"type":"integer"})");
}

TEST_F(ResponsesApiTest, WhatIsNotServedIsAnErrorInItsOwnForm) {
  serve();
  for (const char* body :
       {"{}", R"({"input": []})", R"({"input": "a", "background": true})",
        R"({"input": "a", "previous_response_id": "x"})", R"({"input": "a", "tools": [{"type": "web_search"}]})",
        R"({"input": [{"type": "function_call"}]})",
        R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})", R"({"input": "a", "lora_path": "x"})",
        R"({"input": "a", "bootstrap_room": 7})", R"({"input": "a", "image_data": ["x"]})", R"({"input": "a", "n": 2})",
        R"({"input": "a", "logprobs": true})", R"({"input": "a", "return_hidden_states": true})",
        R"({"input": "a", "temperature": -1})"}) {
    const auto answer = call("POST", "/v1/responses", body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.json()["error"]["type"], "invalid_request_error") << body;
  }
  const auto stored = call("GET", "/v1/responses/resp_1");
  EXPECT_EQ(stored.status, 404);
  EXPECT_THAT(stored.json()["error"]["message"].get<std::string>(), HasSubstr("not stored"));
  EXPECT_EQ(call("POST", "/v1/responses/resp_1/cancel").status, 404);
}

}  // namespace
}  // namespace sluice::engine
