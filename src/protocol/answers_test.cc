#include "protocol/answers.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "protocol/errors.h"

namespace sluice::protocol {
namespace {

Sample sample() {
  Sample out;
  out.rid = "r";
  out.text = "hé";
  out.output_ids = {5, 6};
  out.finish = {.kind = Finish::Kind::kLength, .length = 2};
  out.prompt_tokens = 3;
  out.completion_tokens = 2;
  out.cached_tokens = 1;
  return out;
}

PositionScores scored(std::optional<float> logprob, int32_t id, const std::string& text) {
  PositionScores out;
  out.chosen = {logprob, id, text, text};
  return out;
}

TEST(NativeAnswerTest, HasTheRuntimesShape) {
  auto s = sample();
  s.e2e_latency = 0.5;
  s.answered = 9.5;
  EXPECT_EQ(native_answer(s, {.weight_version = "default"}).dump(),
            R"({"text":"hé","output_ids":[5,6],"meta_info":{"id":"r","finish_reason":{"type":"length","length":2},)"
            R"("weight_version":"default","total_retractions":0,"dp_rank":null,"e2e_latency":0.5,)"
            R"("response_sent_to_client_ts":9.5,"prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}})");
  s.times = SampleTimes{.request_received = 10,
                        .request_finished = 10.5,
                        .queue = 0.125,
                        .forward_entry = 10.125,
                        .inference = 0.375,
                        .prefill = 0.25,
                        .prefill_finished = 10.375};
  const auto meta = native_answer(s, {})["meta_info"].dump();
  EXPECT_TRUE(meta.ends_with(
      R"("e2e_latency":0.5,"response_sent_to_client_ts":9.5,"queue_time":0.125,"forward_entry_time":10.125,)"
      R"("prefill_finished_time":10.375,)"
      R"("prefill_waiting_latency":0.125,"prefill_launch_latency":0.25,"request_received_ts":10.0,)"
      R"("request_finished_ts":10.5,"inference_time":0.375,"decode_throughput":null,)"
      R"("prompt_tokens":3,"completion_tokens":2,"cached_tokens":1})"))
      << meta;
  s.dp_rank = 1;
  EXPECT_EQ(native_answer(s, {.data_parallel = true})["meta_info"]["dp_rank"], 1);
  EXPECT_EQ(native_answer(s, {}, /*first_id=*/1)["output_ids"].dump(), "[6]");
}

TEST(NativeAnswerTest, CountsOfTokensComeLast) {
  auto s = sample();
  s.hidden_states.assign(4, 0.5f);
  s.routed_experts.assign(4, 7);
  s.input_scores = {scored(std::nullopt, 1, "a")};
  const auto answer = native_answer(s, {.logprobs = true, .hidden_size = 1, .routed_experts = true});
  EXPECT_TRUE(answer["meta_info"].contains("hidden_states"));
  EXPECT_TRUE(answer.dump().ends_with(R"("prompt_tokens":3,"completion_tokens":2,"cached_tokens":1}})")) << answer;
}

TEST(NativeAnswerTest, LogprobsAreTriples) {
  auto s = sample();
  s.input_scores = {scored(std::nullopt, 1, "a"), scored(-0.5f, 2, "b")};
  s.input_scores[1].top = {{-0.25f, 9, "z", "z"}};
  s.output_scores = {scored(-1.0f, 5, "h"), scored(-std::numeric_limits<float>::infinity(), 6, "é")};
  const auto meta = native_answer(s, {.logprobs = true, .top_logprobs = true})["meta_info"];
  EXPECT_EQ(meta["input_token_logprobs"].dump(), "[[null,1,null],[-0.5,2,null]]");
  EXPECT_EQ(meta["input_top_logprobs"].dump(), "[null,[[-0.25,9,null]]]");
  EXPECT_EQ(meta["output_token_logprobs"].dump(), "[[-1.0,5,null],[-9999.0,6,null]]");
  EXPECT_FALSE(meta.contains("output_token_ids_logprobs"));
  EXPECT_EQ(native_answer(s, {.logprobs = true, .text_in_logprobs = true})["meta_info"]["output_token_logprobs"].dump(),
            R"([[-1.0,5,"h"],[-9999.0,6,"é"]])");
}

TEST(NativeAnswerTest, NamesEveryFinish) {
  using Kind = Finish::Kind;
  EXPECT_EQ(native_finish_reason({}).dump(), "null");
  EXPECT_EQ(native_finish_reason({.kind = Kind::kStopToken, .matched_token = 2}).dump(),
            R"({"type":"stop","matched":2})");
  EXPECT_EQ(native_finish_reason({.kind = Kind::kStopString, .matched_string = "\n"}).dump(),
            R"({"type":"stop","matched":"\n"})");
  EXPECT_EQ(native_finish_reason({.kind = Kind::kAbort, .message = "gone", .status = 503}).dump(),
            R"({"type":"abort","message":"gone","status_code":503,"err_type":"ServiceUnavailable"})");
  EXPECT_EQ(native_finish_reason({.kind = Kind::kAbort, .message = "Aborted"}).dump(),
            R"({"type":"abort","message":"Aborted","status_code":null,"err_type":null})");
}

const OpenAiFormat kFormat{.id = "x", .model = "m", .created = 7, .weight_version = "default"};

TEST(ChatAnswerTest, HasTheRuntimesShape) {
  auto choices = nlohmann::ordered_json::array();
  choices.push_back(chat_choice(0, {.content = "hi"}, nullptr, {.kind = Finish::Kind::kStopToken, .matched_token = 2}));
  EXPECT_EQ(chat_answer(kFormat, choices, {.prompt_tokens = 3, .completion_tokens = 2, .cached_tokens = 1}, {}),
            R"({"id":"x","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":)"
            R"({"role":"assistant","content":"hi","reasoning_content":null,"tool_calls":null},"logprobs":null,)"
            R"("finish_reason":"stop","matched_stop":2}],"usage":{"prompt_tokens":3,"total_tokens":5,)"
            R"("completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1},"reasoning_tokens":0},)"
            R"("metadata":{"weight_version":"default"}})");
}

TEST(ChatAnswerTest, TheUsageComesLast) {
  auto format = kFormat;
  format.chat_prompt_ids = {1, 2, 3};
  format.routed_experts = true;
  format.cached_details = true;
  auto first = sample();
  first.routed_experts = {1};
  EXPECT_EQ(chat_answer(format, nlohmann::ordered_json::array(),
                        {.prompt_tokens = 3, .completion_tokens = 2, .cached_tokens = 1}, first),
            R"({"id":"x","object":"chat.completion","created":7,"model":"m","choices":[],"prompt_token_ids":[1,2,3],)"
            R"("sglext":{"routed_experts":"AQAAAA==","cached_tokens_details":{"device":1,"host":0}},)"
            R"("usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,)"
            R"("prompt_tokens_details":{"cached_tokens":1},"reasoning_tokens":0},)"
            R"("metadata":{"weight_version":"default"}})");
}

TEST(ChatAnswerTest, ChunksNameUnsetMembers) {
  EXPECT_EQ(chat_chunk(kFormat, 0, ChatDelta::kRole, {}, nullptr, {}, nullptr),
            R"({"id":"x","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":)"
            R"({"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},"logprobs":null,)"
            R"("finish_reason":null,"matched_stop":null}],"usage":null})");
  EXPECT_EQ(chat_chunk(kFormat, 1, ChatDelta::kParts, {.content = "a\"b"}, nullptr, {}, nullptr),
            R"({"id":"x","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":1,"delta":)"
            R"({"role":null,"content":"a\"b","reasoning_content":null,"tool_calls":null},"logprobs":null,)"
            R"("finish_reason":null,"matched_stop":null}],"usage":null})");
  EXPECT_EQ(chat_chunk(kFormat, 0, ChatDelta::kFinish, {}, nullptr,
                       {.kind = Finish::Kind::kStopString, .matched_string = "."}, nullptr),
            R"({"id":"x","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":)"
            R"({"role":null,"content":null,"reasoning_content":null,"tool_calls":null},"logprobs":null,)"
            R"("finish_reason":"stop","matched_stop":"."}],"usage":null})");
  EXPECT_EQ(usage_chunk(kFormat, "chat.completion.chunk", {.prompt_tokens = 1, .completion_tokens = 1}),
            R"({"id":"x","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":)"
            R"({"prompt_tokens":1,"total_tokens":2,"completion_tokens":1,"prompt_tokens_details":null,)"
            R"("reasoning_tokens":0}})");
}

TEST(ChatAnswerTest, LogprobsCarryBytes) {
  auto position = scored(-0.5f, 4, "é");
  position.top = {{-0.5f, 4, "é", "é"}};
  EXPECT_EQ(chat_logprobs({position}, 0).dump(),
            R"({"content":[{"token":"é","bytes":[195,169],"logprob":-0.5,"top_logprobs":[{"token":"é","bytes":)"
            R"([195,169],"logprob":-0.5}]}]})");
}

TEST(CompletionAnswerTest, HasTheRuntimesShape) {
  int64_t offset = 2;
  auto first = scored(-0.5f, 4, "é");
  first.top = {{-0.25f, 1, "x", "x"}};
  auto choices = nlohmann::ordered_json::array();
  choices.push_back(completion_choice(0, "éa", completion_logprobs({first, scored(-1.0f, 5, "a")}, 0, offset),
                                      {.kind = Finish::Kind::kLength, .length = 2}));
  EXPECT_EQ(offset, 4);
  EXPECT_EQ(completion_answer(kFormat, choices, {.prompt_tokens = 1, .completion_tokens = 2}, {}),
            R"({"id":"x","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"éa",)"
            R"("logprobs":{"text_offset":[2,3],"token_logprobs":[-0.5,-1.0],"tokens":["é","a"],"top_logprobs":)"
            R"([{"x":-0.25},null]},"finish_reason":"length","matched_stop":null}],"usage":{"prompt_tokens":1,)"
            R"("total_tokens":3,"completion_tokens":2,"prompt_tokens_details":null,"reasoning_tokens":0},)"
            R"("metadata":{"weight_version":"default"}})");
}

TEST(CompletionAnswerTest, OfAlternativesWithOneTextTheLastStandsWhereTheFirstWas) {
  auto position = scored(-0.5f, 4, "a");
  position.top = {{-0.5f, 4, "a", "a"}, {-1.0f, 5, "b", "b"}, {-2.0f, 6, "a", "a"}};
  int64_t offset = 0;
  EXPECT_EQ(completion_logprobs({position}, 0, offset)["top_logprobs"].dump(), R"([{"a":-2.0,"b":-1.0}])");
}

TEST(CompletionAnswerTest, CachedTokensCanBeLeftOut) {
  EXPECT_EQ(usage_json({.prompt_tokens = 4, .cached_tokens = 3}, false)["prompt_tokens_details"].dump(), "null");
}

TEST(ErrorsTest, HaveTheReferencesShapes) {
  EXPECT_EQ(error_body(503, "The request queue is full."),
            R"({"object":"error","message":"The request queue is full.","type":"503","param":null,"code":503})");
  EXPECT_EQ(error_event(400, "no"),
            R"({"error":{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}})");
  EXPECT_EQ(native_error_body("no"), R"({"error":{"message":"no"}})");
  EXPECT_EQ(auth_error_body(401), R"({"error":"Unauthorized"})");
  EXPECT_EQ(model_not_found_body("x"),
            R"({"error":{"message":"The model 'x' does not exist","type":"invalid_request_error","param":"model",)"
            R"("code":"model_not_found"}})");
  EXPECT_EQ(error_body(400, "\xff"), error_body(400, "\xEF\xBF\xBD"));
}

}  // namespace
}  // namespace sluice::protocol
