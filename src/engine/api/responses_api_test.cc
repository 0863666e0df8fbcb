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
        R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})",
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
