#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ResponsesApiTest : public ApiTest {
 protected:
  ResponsesApiTest() { use_template("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"); }
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

TEST_F(ResponsesApiTest, AStreamThatIsAbortedDoesNotEndAsAWholeOne) {
  serve();
  backend_->set_script([](const GenerateRequest&) {
    return std::vector<Word>{{.ids = {97}}, {.ids = {}, .finish = {.kind = FinishKind::kAbort, .message = "Aborted"}}};
  });
  const auto events = post("/v1/responses", {{"input", "hi"}, {"stream", true}}).events();
  Json last;
  for (const auto& event : events) {
    if (event != "[DONE]") last = Json::parse(event);
  }
  EXPECT_EQ(last["type"], "response.incomplete");
  EXPECT_EQ(last["response"]["status"], "cancelled");
  EXPECT_EQ(last["response"]["output"][0]["status"], "incomplete");
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
       {"{}", R"({"input": []})", R"({"input": "a", "background": true, "stream": true})",
        R"({"input": "a", "background": true, "store": false})", R"({"input": "a", "previous_response_id": "x"})",
        R"({"input": "a", "store": 1})", R"({"input": "a", "conversation": "conv_1"})",
        R"({"input": "a", "tools": [{"type": "web_search"}]})", R"({"input": [{"type": "function_call"}]})",
        R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})", R"({"input": "a", "lora_path": "x"})",
        R"({"input": "a", "bootstrap_room": 7})", R"({"input": "a", "image_data": ["x"]})", R"({"input": "a", "n": 2})",
        R"({"input": "a", "logprobs": true})", R"({"input": "a", "return_hidden_states": true})",
        R"({"input": "a", "temperature": -1})"}) {
    const auto answer = call("POST", "/v1/responses", body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.json()["error"]["type"], "invalid_request_error") << body;
  }
}

TEST_F(ResponsesApiTest, WhatIsKeptWithAResponseIsBounded) {
  options_.max_stored_response_mb = 1;
  serve();
  answer_with("1");
  const std::string first = post("/v1/responses", {{"input", "hi"}}).json()["id"];
  Json many = Json::object(), most = Json::object();
  for (int i = 0; i < 17; ++i) many["k" + std::to_string(i)] = "v";
  std::string umlauts;
  for (int i = 0; i < 512; ++i) umlauts += "\u00fc";
  for (int i = 0; i < 16; ++i) most[fmt::format("{:064}", i)] = umlauts;
  const auto with_metadata = [&](Json metadata) {
    return post("/v1/responses", {{"input", "a"}, {"metadata", std::move(metadata)}});
  };
  const std::vector<std::pair<Json, std::string>> wrong = {
      {Json(7), "metadata must be an object of at most 16 pairs, got number"},
      {Json::array({"k"}), "metadata must be an object of at most 16 pairs, got array"},
      {many, "got 17 pairs"},
      {Json::object({{"k", 7}}), "metadata.k must be a string, got number"},
      {Json::object({{std::string(65, 'k'), "v"}}), "metadata has a key of 65 characters, 64 at most"},
      {Json::object({{"k", umlauts + "x"}}), "metadata.k must have at most 512 characters, got 513"},
      {Json::object({{"k", std::string(2 << 20, 'x')}}), "metadata.k must have at most 512 characters"}};
  for (const auto& [metadata, error] : wrong) {
    const auto answer = with_metadata(metadata);
    EXPECT_EQ(answer.status, 400) << error;
    EXPECT_THAT(answer.body, HasSubstr(error));
  }
  EXPECT_EQ(with_metadata(most).json()["metadata"], most);
  EXPECT_EQ(with_metadata(nullptr).json()["metadata"], Json::object());
  const auto user = post("/v1/responses", {{"input", "a"}, {"user", std::string(2 << 20, 'x')}});
  EXPECT_EQ(user.status, 400);
  EXPECT_THAT(user.body, HasSubstr("user"));
  const Json format = {{"format", {{"type", "text"}, {"more", std::string(2 << 20, 'x')}}}};
  EXPECT_EQ(post("/v1/responses", {{"input", "a"}, {"text", format}}).json()["text"]["format"],
            (Json{{"type", "text"}}));
  EXPECT_EQ(call("GET", "/v1/responses/" + first).status, 200);
}

TEST_F(ResponsesApiTest, IsFetchedAgainAndRemoved) {
  serve();
  answer_with("hello world");
  const auto made = post("/v1/responses", {{"input", "hi"}, {"metadata", {{"k", "v"}}}}).json();
  ASSERT_EQ(made["store"], true);
  const std::string path = "/v1/responses/" + made["id"].get<std::string>();
  EXPECT_EQ(call("GET", path).json(), made);
  // One of a stream too, as soon as its last event is there.
  const auto events = post("/v1/responses", {{"input", "hi"}, {"stream", true}}).events();
  const auto last = Json::parse(events[events.size() - 2])["response"];
  EXPECT_EQ(call("GET", "/v1/responses/" + last["id"].get<std::string>()).json(), last);

  EXPECT_EQ(call("DELETE", path).json(), (Json{{"id", made["id"]}, {"object", "response.deleted"}, {"deleted", true}}));
  EXPECT_EQ(call("GET", path).status, 404);
  EXPECT_EQ(call("DELETE", path).status, 404);
}

TEST_F(ResponsesApiTest, WhatIsNotKeptIsNotFoundAndTheErrorSaysWhy) {
  options_.max_stored_responses = 1;
  serve();
  answer_with("1");
  const std::string dropped = post("/v1/responses", {{"input", "hi"}}).json()["id"];
  const std::string kept = post("/v1/responses", {{"input", "hi"}}).json()["id"];
  const auto unkept = post("/v1/responses", {{"input", "hi"}, {"store", false}}).json();
  EXPECT_EQ(unkept["store"], false);
  EXPECT_EQ(call("GET", "/v1/responses/" + kept).status, 200);
  for (const auto& [id, why] : {std::pair{dropped, "dropped"}, {unkept["id"].get<std::string>(), "store false"}}) {
    const auto answer = call("GET", "/v1/responses/" + id);
    EXPECT_EQ(answer.status, 404);
    const auto error = answer.json()["error"];
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(why));
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_EQ(error["param"], "response_id");
    EXPECT_EQ(error["code"], 404);
    EXPECT_EQ(call("POST", "/v1/responses/" + id + "/cancel").status, 404);
    EXPECT_EQ(post("/v1/responses", {{"input", "a"}, {"previous_response_id", id}}).status, 404);
  }
  EXPECT_THAT(metrics_.render(), HasSubstr("sluice:stored_responses 1\n"));
  EXPECT_THAT(metrics_.render(), HasSubstr("sluice:dropped_responses_total 1\n"));
}

TEST_F(ResponsesApiTest, PathsAndMethodsThatAreNoneAreErrors) {
  serve();
  answer_with("1");
  const std::string id = post("/v1/responses", {{"input", "hi"}}).json()["id"];
  EXPECT_EQ(call("GET", "/v1/responses/x").status, 400);
  EXPECT_EQ(call("GET", "/v1/responses/resp_" + std::string(300, 'x')).status, 400);
  EXPECT_EQ(call("GET", "/v1/responses/" + id + "/input_items").status, 404);
  EXPECT_EQ(call("POST", "/v1/responses/" + id).status, 405);
  EXPECT_THAT(call("GET", "/v1/responses/" + id + "/cancel").head, HasSubstr("Allow: POST"));
  EXPECT_EQ(call("GET", "/v1/responses/" + id + "?stream=true").status, 400);
  const auto cancelled = call("POST", "/v1/responses/" + id + "/cancel");
  EXPECT_EQ(cancelled.status, 400);
  EXPECT_EQ(cancelled.json()["error"]["message"], "Cannot cancel a synchronous response.");
}

TEST_F(ResponsesApiTest, GoesOnFromAnEarlierOneWithoutItsInstructions) {
  serve();
  answer_with("hello world");
  const std::string first = post("/v1/responses", {{"input", "hi"}, {"instructions", "Be kind."}}).json()["id"];
  answer_with("1");
  const auto second =
      post("/v1/responses", {{"input", "and?"}, {"instructions", "Be brief."}, {"previous_response_id", first}}).json();
  EXPECT_EQ(second["previous_response_id"], first);
  EXPECT_EQ(prompt(), "system:Be brief.;user:hi;assistant:hello world;user:and?;");
  // From either of them again.
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"previous_response_id", first}}).status, 200);
  EXPECT_EQ(prompt(), "user:hi;assistant:hello world;user:x;");
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"previous_response_id", second["id"]}, {"store", false}}).status,
            200);
  EXPECT_EQ(prompt(), "user:hi;assistant:hello world;user:and?;assistant:1;user:x;");
}

TEST_F(ResponsesApiTest, ReasoningIsNotGoneOnWith) {
  options_.reasoning_parser = "qwen3";
  serve();
  backend_->set_script([tokens = byte_ids("<think>\nHm.\n</think>\n\n{}")](const GenerateRequest&) {
    return std::vector<Word>{{.ids = tokens}, {.ids = {2}, .finish = {.kind = FinishKind::kStopToken}}};
  });
  const std::string id = post("/v1/responses", {{"input", "hi"}}).json()["id"];
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"previous_response_id", id}}).status, 200);
  EXPECT_EQ(prompt(), "user:hi;assistant:{};user:x;");
}

class BackgroundTest : public ResponsesApiTest {
 protected:
  // Begins one whose rank says nothing yet.
  std::string begin(const std::string& input = "hi") {
    const auto answer = post("/v1/responses", {{"input", input}, {"background", true}});
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.json()["status"], "queued");
    EXPECT_EQ(answer.json()["background"], true);
    EXPECT_EQ(answer.json()["usage"], nullptr);
    return answer.json()["id"];
  }
  Json fetch(const std::string& id) { return call("GET", "/v1/responses/" + id).json(); }
  // Polls as clients do.
  Json wait_for(const std::string& id, std::string_view status) {
    Json answer;
    backend_->wait_for([&](const FakeBackend&) { return (answer = fetch(id))["status"] == status; });
    EXPECT_EQ(answer["status"], status);
    return answer;
  }
  std::string rid() const { return backend_->submitted().back().first.rid; }
};

TEST_F(BackgroundTest, IsQueuedInProgressAndCompleted) {
  serve();
  const std::string id = begin();
  EXPECT_EQ(fetch(id)["status"], "queued");
  backend_->say(rid(), {.ids = ids("hello")});
  const auto going_on = wait_for(id, "in_progress");
  EXPECT_EQ(going_on["output"], Json::array());
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"previous_response_id", id}}).status, 400);
  backend_->say(rid(), {.ids = {2}, .finish = {.kind = FinishKind::kStopToken, .matched_token = 2}});
  const auto done = wait_for(id, "completed");
  EXPECT_EQ(done["output"][0]["content"][0]["text"], "hello");
  EXPECT_GT(done["usage"]["output_tokens"], 0);
  EXPECT_EQ(call("POST", "/v1/responses/" + id + "/cancel").json(), done);
  answer_with("1");
  EXPECT_EQ(post("/v1/responses", {{"input", "x"}, {"previous_response_id", id}}).status, 200);
  EXPECT_EQ(prompt(), "user:hi;assistant:hello;user:x;");
}

TEST_F(BackgroundTest, CancellingEndsItInItsRank) {
  serve();
  const std::string id = begin();
  backend_->say(rid(), {.ids = ids("hello")});
  wait_for(id, "in_progress");
  const std::string path = "/v1/responses/" + id + "/cancel";
  EXPECT_EQ(call("POST", path).json()["status"], "cancelled");
  EXPECT_TRUE(backend_->wait_for([&](const FakeBackend& ranks) { return ranks.running().empty(); }));
  EXPECT_THAT(backend_->aborted(), ElementsAre(rid()));
  EXPECT_EQ(call("POST", path).json()["status"], "cancelled");
  EXPECT_EQ(fetch(id)["status"], "cancelled");
  // What is removed ends as well.
  const std::string removed = begin();
  EXPECT_EQ(call("DELETE", "/v1/responses/" + removed).status, 200);
  EXPECT_TRUE(backend_->wait_for([&](const FakeBackend& ranks) { return ranks.running().empty(); }));
}

TEST_F(BackgroundTest, ARankThatEndsMakesItFailed) {
  serve();
  const std::string id = begin();
  backend_->say(
      rid(),
      {.ids = {},
       .finish = {.kind = FinishKind::kAbort, .message = "rank 0 ended", .status_code = 503, .rank_ended = true}});
  const auto failed = wait_for(id, "failed");
  EXPECT_EQ(failed["error"], (Json{{"code", "server_error"}, {"message", "rank 0 ended"}}));
  EXPECT_EQ(failed["output"], Json::array());
}

TEST_F(BackgroundTest, WhatCannotBeginIsRefusedAndLeavesNothing) {
  options_.max_stored_responses = 2;
  serve();
  const std::string first = begin(), second = begin();
  const auto refused = post("/v1/responses", {{"input", "hi"}, {"background", true}});
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.body, HasSubstr("--max-stored-responses"));
  EXPECT_EQ(backend_->submitted().size(), 2u);
  for (const auto& id : {first, second}) call("DELETE", "/v1/responses/" + id);
  backend_->set_ranks([](std::vector<RankState>& ranks) { ranks[0].ready = false; });
  EXPECT_EQ(post("/v1/responses", {{"input", "hi"}, {"background", true}}).status, 503);
  EXPECT_THAT(metrics_.render(), HasSubstr("sluice:stored_responses 0\n"));
}

TEST_F(BackgroundTest, IsNotOfferedWithoutAStoreOrBeforeTheEnd) {
  options_.max_stored_responses = 0;
  serve();
  answer_with("1");
  const auto refused = post("/v1/responses", {{"input", "hi"}, {"background", true}});
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("--max-stored-responses"));
  EXPECT_EQ(post("/v1/responses", {{"input", "hi"}}).json()["store"], false);
}

TEST_F(BackgroundTest, BytesOfWhatIsStoredAreBounded) {
  options_.max_stored_response_mb = 1;
  options_.allow_auto_truncate = true;
  serve();
  answer_with("1");
  const std::string text(400'000, 'a');
  const std::string first = post("/v1/responses", {{"input", text}}).json()["id"];
  for (int i = 0; i < 2; ++i) EXPECT_EQ(post("/v1/responses", {{"input", text}}).status, 200);
  EXPECT_EQ(call("GET", "/v1/responses/" + first).status, 404);
}

TEST_F(BackgroundTest, WhatItHoldsCountsOnceAndGoesWhereItIsCancelled) {
  options_.max_stored_response_mb = 1;
  options_.allow_auto_truncate = true;
  serve();
  // Two copies of it would not fit.
  const std::string id = begin(std::string(700'000, 'a'));
  const auto stored_bytes = [&] {
    (void)metrics_.render();
    return metrics_.gauge("sluice:stored_response_bytes").value();
  };
  EXPECT_GT(stored_bytes(), 700'000);
  EXPECT_EQ(post("/v1/responses", {{"input", std::string(700'000, 'a')}, {"background", true}}).status, 503);
  call("POST", "/v1/responses/" + id + "/cancel");
  EXPECT_TRUE(backend_->wait_for([&](const FakeBackend&) { return stored_bytes() < 10'000; }));
  EXPECT_EQ(fetch(id)["status"], "cancelled");
}

TEST_F(BackgroundTest, AConversationThatHasOutgrownTheContextIsNotCut) {
  options_.allow_auto_truncate = true;
  serve();
  answer_with("1");
  const std::string text(20'000, 'a');
  const auto first = post("/v1/responses", {{"input", text}});
  ASSERT_EQ(first.status, 200) << first.body;
  const auto second = post("/v1/responses", {{"input", "b"}, {"previous_response_id", first.json()["id"]}});
  EXPECT_EQ(second.status, 400);
  EXPECT_THAT(second.body, HasSubstr("previous_response_id: the conversation has"));
  EXPECT_THAT(second.body, HasSubstr("2041 are the most"));
}

TEST_F(BackgroundTest, EndsWithTheServerAndNothingBeginsThen) {
  serve();
  const std::string id = begin();
  // A client has left and has asked for the end all the same.
  {
    Client client(port_);
    client.send("POST", "/generate", Json{{"text", "a"}, {"background", true}}.dump());
    ASSERT_TRUE(backend_->wait_for([](const FakeBackend& ranks) { return ranks.submitted().size() == 2; }));
    client.leave();
  }
  api_->set_status(ServerStatus::kDraining);
  EXPECT_EQ(post("/v1/responses", {{"input", "hi"}, {"background", true}}).status, 503);
  api_->stop();
  EXPECT_TRUE(backend_->running().empty());
  EXPECT_EQ(fetch(id)["status"], "failed");
  EXPECT_THAT(fetch(id)["error"]["message"].get<std::string>(), HasSubstr("the server has ended"));
}

TEST_F(BackgroundTest, NothingBeginsOnceTheServerHasStoppedIt) {
  serve();
  answer_with("1");
  api_->stop();  // with no drain before
  const auto refused = post("/v1/responses", {{"input", "hi"}, {"background", true}});
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.body, HasSubstr("nothing begins in the background"));
  EXPECT_EQ(post("/generate", {{"text", "a"}, {"background", true}}).status, 503);
  EXPECT_TRUE(backend_->submitted().empty());
  EXPECT_THAT(metrics_.render(), HasSubstr("sluice:stored_responses 0\n"));
}

}  // namespace
}  // namespace sluice::engine
