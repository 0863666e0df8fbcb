#include "engine/api/native_api.h"

#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class NativeApiTest : public ApiTest {};

TEST_F(NativeApiTest, AnswersTextAsAWhole) {
  serve();
  answer_with("hello world");
  const auto answer = post("/generate", {{"text", "hi there"}, {"sampling_params", {{"temperature", 0}}}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto json = answer.json();
  EXPECT_EQ(json["text"], "hello world");
  auto expected = ids("hello world");
  expected.push_back(2);
  EXPECT_EQ(json["output_ids"], Json(expected));
  const auto& meta = json["meta_info"];
  EXPECT_EQ(meta["finish_reason"].dump(), R"({"type":"stop","matched":2})");
  EXPECT_EQ(meta["prompt_tokens"], ids("hi there").size());
  EXPECT_EQ(meta["completion_tokens"], expected.size());
  EXPECT_EQ(meta["cached_tokens"], 1);
  EXPECT_EQ(meta["weight_version"], "default");
  EXPECT_TRUE(meta["dp_rank"].is_null());
  EXPECT_TRUE(meta["e2e_latency"].is_number());
  EXPECT_EQ(meta["queue_time"], 0.25);
  EXPECT_EQ(meta["forward_entry_time"], 1.0);
  EXPECT_EQ(meta["prefill_finished_time"], 1.5);
  EXPECT_EQ(meta["prefill_waiting_latency"], 0.25);
  EXPECT_EQ(meta["prefill_launch_latency"], 0.5);
  EXPECT_GE(meta["request_finished_ts"], meta["request_received_ts"]);
  EXPECT_GT(meta["inference_time"], 0.0);
  EXPECT_GT(meta["decode_throughput"], 0.0);
  const auto sent = backend_->submitted().at(0).first;
  EXPECT_EQ(meta["id"], sent.rid);
  EXPECT_EQ(sent.input_ids, ids("hi there"));
  EXPECT_EQ(sent.sampling.max_new_tokens, 128);
  EXPECT_EQ(sent.sampling.temperature, 0);
  EXPECT_EQ(sent.stream_interval, 50);
}

TEST_F(NativeApiTest, TheRankIsTheOneThatAnswered) {
  options_.dp_size = 2;
  serve();
  answer_with("hello");
  backend_->moved_to = 1;
  const auto meta = post("/generate", {{"text", "hi"}, {"routed_dp_rank", 0}}).json()["meta_info"];
  EXPECT_EQ(meta["dp_rank"], 1);
}

TEST_F(NativeApiTest, TimesAreToldWithMetricsOnly) {
  options_.enable_metrics = false;
  serve();
  answer_with("hello");
  const auto meta = post("/generate", {{"text", "hi"}}).json()["meta_info"];
  EXPECT_TRUE(meta["e2e_latency"].is_number());
  EXPECT_FALSE(meta.contains("queue_time"));
}

TEST_F(NativeApiTest, WithDeterministicRequestsWithoutASeedHaveTheSame) {
  options_.deterministic = true;
  serve();
  const auto seeds_of = [&](const Json& params) {
    const size_t before = backend_->submitted().size();
    answer_with("hello");
    post("/generate", {{"text", "hi"}, {"sampling_params", params}});
    std::vector<uint64_t> seeds;
    for (size_t i = before; i < backend_->submitted().size(); ++i) {
      seeds.push_back(backend_->submitted()[i].first.sampling.seed.value());
    }
    std::ranges::sort(seeds);
    return seeds;
  };
  EXPECT_EQ(seeds_of({{"max_new_tokens", 4}}), (std::vector<uint64_t>{42}));
  EXPECT_EQ(seeds_of({{"n", 2}}), (std::vector<uint64_t>{42, 43}));
  EXPECT_EQ(seeds_of({{"sampling_seed", 9}}), (std::vector<uint64_t>{9}));
}

TEST_F(NativeApiTest, StreamsCumulativeTextAndIds) {
  serve();
  answer_with("hello world");
  const auto answer = post("/generate", {{"text", "hi"}, {"stream", true}});
  ASSERT_EQ(answer.status, 200);
  EXPECT_THAT(answer.head, HasSubstr("Content-Type: text/event-stream"));
  const auto events = answer.events();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events.back(), "[DONE]");
  std::string before;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const auto event = Json::parse(events[i]);
    EXPECT_TRUE(event["text"].get<std::string>().starts_with(before));
    EXPECT_FALSE(event.contains("index"));
    EXPECT_EQ(event["meta_info"]["finish_reason"].is_null(), i + 2 < events.size());
    EXPECT_EQ(event["output_ids"].size(), event["meta_info"]["completion_tokens"]);
    before = event["text"];
  }
  EXPECT_EQ(before, "hello world");
  EXPECT_EQ(backend_->submitted()[0].first.stream_interval, 1);
}

TEST_F(NativeApiTest, StreamOutputCarriesOnlyNewIds) {
  options_.stream_output = true;
  options_.stream_interval = 3;
  serve();
  answer_with("hello world");
  const auto events = post("/generate", {{"text", "hi"}, {"stream", true}}).events();
  std::vector<int32_t> all;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const auto part = Json::parse(events[i])["output_ids"].get<std::vector<int32_t>>();
    all.insert(all.end(), part.begin(), part.end());
  }
  auto expected = ids("hello world");
  expected.push_back(2);
  EXPECT_EQ(all, expected);
  EXPECT_EQ(backend_->submitted()[0].first.stream_interval, 3);
}

TEST_F(NativeApiTest, ABatchAnswersAListInItsOrder) {
  serve();
  backend_->set_script([this](const GenerateRequest& request) {
    return std::vector<Word>{{.ids = request.input_ids, .finish = {.kind = FinishKind::kLength}}};
  });
  const auto answer = post("/generate", {{"text", {"one", "two", "three"}}, {"rid", "R"}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto json = answer.json();
  ASSERT_EQ(json.size(), 3u);
  EXPECT_EQ(json[0]["text"], "one");
  EXPECT_EQ(json[1]["text"], "two");
  EXPECT_EQ(json[2]["text"], "three");
  EXPECT_EQ(json[2]["meta_info"]["id"], "R_2");
  EXPECT_EQ(json[0]["meta_info"]["finish_reason"].dump(),
            fmt::format(R"({{"type":"length","length":{}}})", ids("one").size()));
}

TEST_F(NativeApiTest, SamplesOfOnePromptFollowTheFirstToItsRank) {
  options_.dp_size = 2;
  serve();
  answer_with("x");
  const auto answer =
      post("/generate", {{"input_ids", {5, 6, 7}}, {"sampling_params", {{"n", 3}, {"sampling_seed", 9}}}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  ASSERT_EQ(answer.json().size(), 3u);
  const auto sent = backend_->submitted();
  ASSERT_EQ(sent.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(sent[i].second, sent[0].second);
    EXPECT_EQ(*sent[i].first.sampling.seed, 9 + i);
    EXPECT_EQ(answer.json()[i]["meta_info"]["dp_rank"], sent[0].second);
  }
}

TEST_F(NativeApiTest, ABatchStreamNumbersItsEvents) {
  serve();
  answer_with("a b");
  const auto events = post("/generate", {{"text", {"one", "two"}}, {"stream", true}}).events();
  std::map<int, std::string> last;
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const auto event = Json::parse(events[i]);
    last[event["index"]] = event["text"];
  }
  EXPECT_EQ(last, (std::map<int, std::string>{{0, "a b"}, {1, "a b"}}));
}

TEST_F(NativeApiTest, LogprobsAreTriples) {
  serve();
  backend_->set_script([](const GenerateRequest&) {
    PositionLogprobs first, second, output;
    second.chosen = TokenLogprob{-0.5f, 6};
    output.chosen = TokenLogprob{-1.0f, 7};
    output.top = {{-0.25f, 8}};
    output.requested = {{-2.0f, 9}};
    return std::vector<Word>{{.ids = {7},
                              .finish = {.kind = FinishKind::kLength},
                              .input_logprobs = {first, second},
                              .output_logprobs = {output}}};
  });
  const Json body = {{"input_ids", {5, 6}},
                     {"return_logprob", true},
                     {"logprob_start_len", 0},
                     {"top_logprobs_num", 1},
                     {"token_ids_logprob", {9}}};
  const auto meta = post("/generate", body).json()["meta_info"];
  EXPECT_EQ(meta["input_token_logprobs"].dump(), "[[null,5,null],[-0.5,6,null]]");
  EXPECT_EQ(meta["output_token_logprobs"].dump(), "[[-1.0,7,null]]");
  EXPECT_EQ(meta["output_top_logprobs"].dump(), "[[[-0.25,8,null]]]");
  EXPECT_EQ(meta["output_token_ids_logprobs"].dump(), "[[[-2.0,9,null]]]");
  const auto sent = backend_->submitted()[0].first;
  EXPECT_TRUE(sent.return_logprob);
  EXPECT_EQ(sent.logprob_start_len, 0);
  EXPECT_EQ(sent.top_logprobs_num, 1);
  EXPECT_THAT(sent.token_ids_logprob, ElementsAre(9));
}

TEST_F(NativeApiTest, TooManyLogprobsForOneAnswerAreRefused) {
  serve();
  answer_with("x");
  // 8 samples of 512 tokens: 1,023 alternatives are 4 Mi in all.
  Json body = {
      {"text", "a"}, {"return_logprob", true}, {"top_logprobs_num", 1000}, {"token_ids_logprob", Json::array()}};
  for (int id = 0; id < 23; ++id) body["token_ids_logprob"].push_back(id);
  body["sampling_params"] = {{"n", 8}, {"max_new_tokens", 512}};
  EXPECT_EQ(post("/generate", body).status, 200);
  const size_t sent = backend_->submitted().size();
  auto refused = [&](const std::string& target, const Json& wrong) {
    const auto answer = post(target, wrong);
    EXPECT_EQ(answer.status, 400) << target;
    EXPECT_THAT(answer.body, HasSubstr("log-probabilities, 4194304 at most"));
  };
  Json more = body;
  more["token_ids_logprob"].push_back(23);
  refused("/generate", more);
  more["stream"] = true;
  EXPECT_THAT(post("/generate", more).body, HasSubstr("log-probabilities, 4194304 at most"));
  more = body;
  more["logprob_start_len"] = 0;  // those of the prompt too
  refused("/generate", more);
  refused("/v1/completions", {{"prompt", "a"}, {"logprobs", 1000}, {"n", 128}, {"max_tokens", 100}});
  refused("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "a"}}}},
                                   {"logprobs", true},
                                   {"top_logprobs", 1000},
                                   {"n", 128},
                                   {"max_tokens", 100}});
  EXPECT_EQ(backend_->submitted().size(), sent);
  // Who gives no length gets as many tokens as there may be log-probabilities of: 128 samples with 41 for each.
  const Json open = {
      {"messages", {{{"role", "user"}, {"content", "a"}}}}, {"logprobs", true}, {"top_logprobs", 40}, {"n", 128}};
  EXPECT_EQ(post("/v1/chat/completions", open).status, 200);
  EXPECT_EQ(backend_->submitted().back().first.sampling.max_new_tokens, 4194304 / (128 * 41));
  // Without log-probabilities the number of alternatives asks for nothing.
  more = body;
  more["token_ids_logprob"].push_back(23);
  more["return_logprob"] = false;
  EXPECT_EQ(post("/generate", more).status, 200);
}

TEST_F(NativeApiTest, ValidationHasItsOwnForm) {
  serve();
  const auto wrong = post("/generate", {{"text", "a"}, {"sampling_params", {{"temperature", -1}}}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_EQ(wrong.body,
            R"({"error":{"message":"sampling_params.temperature must be a number of at least 0, got -1"}})");
  const auto stream = post("/generate", {{"text", "a"}, {"stream", true}, {"sampling_params", {{"top_p", 2}}}});
  EXPECT_EQ(stream.status, 200);
  ASSERT_EQ(stream.events().size(), 2u);
  EXPECT_THAT(stream.events()[0], HasSubstr(R"({"error":{"message":"sampling_params.top_p)"));
  EXPECT_EQ(stream.events()[1], "[DONE]");
  const auto wrong_type = post("/generate", {{"text", "a"}, {"stream", "yes"}});
  EXPECT_EQ(wrong_type.status, 400);
  EXPECT_EQ(wrong_type.json()["message"], "stream must be true or false, got \"yes\"");
  const auto malformed = call("POST", "/generate", "{");
  EXPECT_EQ(malformed.status, 400);
  EXPECT_EQ(malformed.json()["object"], "error");
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(NativeApiTest, LengthsBeyondTheContextAreNamed) {
  serve();
  const auto prompt = std::vector<int32_t>(2048, 5);
  const auto longer = post("/generate", {{"input_ids", prompt}});
  EXPECT_EQ(longer.status, 400);
  EXPECT_THAT(longer.body,
              HasSubstr("The input (2048 tokens) is longer than the model's context length (2048 tokens)."));
  const auto more = post("/generate", {{"input_ids", {5, 6}}, {"sampling_params", {{"max_new_tokens", 2046}}}});
  EXPECT_EQ(more.status, 400);
  EXPECT_THAT(more.body, HasSubstr("a total of 2048 tokens: 2 tokens from the input messages and 2046 tokens"));
}

TEST_F(NativeApiTest, AutoTruncateCutsThePromptAndTheAnswer) {
  options_.allow_auto_truncate = true;
  serve();
  answer_with("x");
  EXPECT_EQ(post("/generate", {{"input_ids", std::vector<int32_t>(3000, 5)}}).status, 200);
  EXPECT_EQ(backend_->submitted()[0].first.input_ids.size(), 2041u);
  EXPECT_EQ(post("/generate", {{"input_ids", {5, 6}}, {"sampling_params", {{"max_new_tokens", 9999}}}}).status, 200);
  EXPECT_EQ(backend_->submitted()[1].first.sampling.max_new_tokens, 2045);
}

TEST_F(NativeApiTest, RanksAreChosenByHeaderThenBody) {
  options_.dp_size = 2;
  serve();
  answer_with("x");
  const auto rank = [&](const std::string& body, const std::string& headers) {
    const auto answer = call("POST", "/generate", body, "Content-Type: application/json\r\n" + headers);
    return answer.status == 200 ? answer.json()["meta_info"]["dp_rank"].dump() : answer.body;
  };
  EXPECT_EQ(rank(R"({"text":"a","routed_dp_rank":1})", ""), "1");
  EXPECT_EQ(rank(R"({"text":"a","data_parallel_rank":1})", ""), "1");
  EXPECT_EQ(rank(R"({"text":"a","routed_dp_rank":0,"data_parallel_rank":1})", ""), "0");
  EXPECT_EQ(rank(R"({"text":"a","routed_dp_rank":0})", "X-Data-Parallel-Rank: 1\r\n"), "1");
  EXPECT_THAT(rank(R"({"text":"a"})", "X-Data-Parallel-Rank: one\r\n"), HasSubstr("must be an integer, got 'one'"));
  EXPECT_EQ(rank(R"({"text":"a","routed_dp_rank":2})", ""),
            R"({"error":{"message":"routed_dp_rank must be in [0, 1], got 2"}})");
}

TEST_F(NativeApiTest, ARankThatIsDownIs503) {
  serve();
  backend_->set_ranks([](auto& ranks) { ranks[0].ready = false; });
  for (const bool stream : {false, true}) {
    const auto answer = post("/generate", {{"text", "a"}, {"stream", stream}});
    EXPECT_EQ(answer.status, 503);
    EXPECT_EQ(answer.body, R"({"object":"error","message":"no rank is ready","type":"503","param":null,"code":503})");
  }
}

TEST_F(NativeApiTest, AFailureOfARankIsTheAnswer) {
  serve();
  FinishReason finish{.kind = FinishKind::kAbort, .message = "The request queue is full.", .status_code = 503};
  const auto fail = [&] {
    backend_->set_script([finish](const GenerateRequest&) { return std::vector<Word>{{.ids = {}, .finish = finish}}; });
  };
  fail();
  for (const bool stream : {false, true}) {
    const auto answer = post("/generate", {{"text", "a"}, {"stream", stream}});
    EXPECT_EQ(answer.status, 503) << "nothing was sent, so that a gateway may try it elsewhere";
    EXPECT_EQ(answer.body,
              R"({"object":"error","message":"The request queue is full.","type":"503","param":null,"code":503})");
  }
  const auto stream = post_stream("/generate", {{"text", "a"}}, finish).events();
  ASSERT_GE(stream.size(), 2u);
  EXPECT_EQ(stream.back(), "[DONE]");
  EXPECT_EQ(Json::parse(stream[stream.size() - 2])["meta_info"]["finish_reason"].dump(),
            R"({"type":"abort","message":"The request queue is full.","status_code":503,)"
            R"("err_type":"ServiceUnavailable"})");
  finish.status_code = 400;
  fail();
  EXPECT_EQ(post("/generate", {{"text", "a"}}).body, R"({"error":{"message":"The request queue is full."}})");
  const auto refused = post("/generate", {{"text", "a"}, {"stream", true}}).events();
  EXPECT_EQ(refused[refused.size() - 2], R"({"error":{"message":"The request queue is full."}})");
}

TEST_F(NativeApiTest, TheEndOfTwoRanksIsToldApart) {
  serve();
  backend_->set_script([](const GenerateRequest&) {
    return std::vector<Word>{
        {.ids = {},
         .finish = {
             .kind = FinishKind::kAbort, .message = "why", .status_code = 500, .rank_ended = true, .ended_two = true}}};
  });
  for (const auto& [target, body] : std::vector<std::pair<std::string, Json>>{{"/generate", {{"text", "a"}}},
                                                                              {"/v1/completions", {{"prompt", "a"}}}}) {
    const auto answer = post(target, body);
    EXPECT_EQ(answer.status, 500);
    EXPECT_THAT(answer.body, HasSubstr(R"("reason":"two_ranks_ended")")) << target;
  }
}

TEST_F(NativeApiTest, TheEndOfARankIsToldToProgramsOnEveryEndpoint) {
  serve();
  const auto finish_of = [](bool of_rank) {
    return FinishReason{.kind = FinishKind::kAbort, .message = "why", .status_code = 500, .rank_ended = of_rank};
  };
  const auto end = [&](bool of_rank) {
    backend_->set_script([finish = finish_of(of_rank)](const GenerateRequest&) {
      return std::vector<Word>{{.ids = {}, .finish = finish}};
    });
  };
  const Json messages = {{{"role", "user"}, {"content", "a"}}};
  const std::vector<std::pair<std::string, Json>> asked = {
      {"/generate", {{"text", "a"}}},
      {"/v1/completions", {{"prompt", "a"}}},
      {"/v1/chat/completions", {{"messages", messages}}},
      {"/v1/responses", {{"input", "a"}}},
      {"/v1/score", {{"query", "a"}, {"items", {"b"}}, {"label_token_ids", {5}}}}};
  for (auto [target, body] : asked) {
    end(true);
    const auto answer = post(target, body);
    EXPECT_EQ(answer.status, 500) << target;
    const Json json = answer.json();
    EXPECT_EQ((json.contains("error") ? json["error"] : json)["reason"], "rank_ended") << answer.body;
    if (target != "/v1/score") {
      body["stream"] = true;
      const auto refused = post(target, body);
      EXPECT_EQ(refused.status, 500) << target << ": before the first event";
      EXPECT_THAT(refused.body, HasSubstr(R"("reason":"rank_ended")")) << target;
      EXPECT_THAT(post_stream(target, body, finish_of(true)).body, HasSubstr(R"("reason":"rank_ended")")) << target;
    }
    end(false);
    EXPECT_THAT(post(target, body).body, ::testing::Not(HasSubstr("rank_ended"))) << target;
  }
}

// It is made elsewhere than on the loop, and is the same.
TEST_F(NativeApiTest, ManyLogprobsComeWhole) {
  serve();
  backend_->set_script([](const GenerateRequest&) {
    Word word{.ids = {5}, .finish = {.kind = FinishKind::kLength}};
    for (int i = 0; i < 1000; ++i) word.input_logprobs.push_back({.chosen = TokenLogprob{-0.5f, i % 300}});
    word.output_logprobs = {{.chosen = TokenLogprob{-0.25f, 5}}};
    return std::vector<Word>{word};
  });
  const Json body = {{"text", {"a", "b"}}, {"return_logprob", true}, {"logprob_start_len", 0}};
  const auto list = post("/generate", body).json();
  ASSERT_EQ(list.size(), 2u);
  for (const auto& one : list) {
    ASSERT_EQ(one["meta_info"]["input_token_logprobs"].size(), 1000u);
    EXPECT_EQ(one["meta_info"]["input_token_logprobs"][999].dump(), "[-0.5,99,null]");
    EXPECT_EQ(one["meta_info"]["output_token_logprobs"].dump(), "[[-0.25,5,null]]");
  }
  const auto completion = post("/v1/completions", {{"prompt", "a"}, {"logprobs", 1}, {"echo", true}}).json();
  EXPECT_EQ(completion["choices"][0]["logprobs"]["tokens"].size(), 1001u);
}

TEST_F(NativeApiTest, OneFailureOfABatchAbortsTheOthers) {
  serve();
  backend_->set_script([](const GenerateRequest& request) {
    if (request.rid != "R_1") return std::vector<Word>{{.ids = {5}}};  // and then nothing
    return std::vector<Word>{
        {.ids = {}, .finish = {.kind = FinishKind::kAbort, .message = "gone", .status_code = 500}}};
  });
  const auto answer = post("/generate", {{"text", {"a", "b", "c"}}, {"rid", "R"}});
  EXPECT_EQ(answer.status, 500);
  EXPECT_EQ(answer.json()["message"], "gone");
  EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().empty(); }));
  EXPECT_THAT(backend_->aborted(), ::testing::UnorderedElementsAre("R_0", "R_2"));
}

TEST_F(NativeApiTest, AClientThatLeavesAbortsItsRequests) {
  serve();
  for (const bool stream : {false, true}) {
    Client client(port_);
    const std::string rid = stream ? "S" : "W";
    client.send("POST", "/generate", Json{{"text", {"a", "b"}}, {"rid", rid}, {"stream", stream}}.dump());
    ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 2; }));
    if (stream) {
      backend_->say("S_0", {.ids = ids("hello")});
      ASSERT_TRUE(client.read_until("hello"));
    }
    client.leave();
    EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().empty(); }));
    EXPECT_THAT(backend_->aborted(), ::testing::IsSupersetOf({rid + "_0", rid + "_1"}));
  }
  EXPECT_EQ(backend_->aborted().size(), 4u);
}

TEST_F(NativeApiTest, ARequestInTheBackgroundGoesOnWithoutItsClient) {
  serve();
  Client client(port_);
  client.send("POST", "/generate", R"({"text":"a","rid":"B","background":true,"sampling_params":{"n":2}})");
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
  client.leave();
  const Word last{.ids = ids("hello"), .finish = {.kind = FinishKind::kLength}};
  backend_->say("B_0", last);
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running() == std::vector<std::string>{"B_1"}; }))
      << "the samples that share its prompt are still to come";
  backend_->say("B_1", last);
  EXPECT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().empty(); }));
  EXPECT_THAT(backend_->aborted(), ::testing::IsEmpty());

  const auto stream = post("/generate", {{"text", "a"}, {"background", true}, {"stream", true}});
  EXPECT_THAT(stream.body, HasSubstr("background is for whole answers"));
}

TEST_F(NativeApiTest, AnAbortedRequestEndsWithThatReason) {
  serve();
  Client client(port_);
  client.send("POST", "/generate", R"({"text":"a","rid":"R","sampling_params":{"n":2}})");
  ASSERT_TRUE(backend_->wait_for([](const FakeBackend& b) { return b.running().size() == 1; }));
  EXPECT_EQ(post("/abort_request", {{"rid", "R"}}).status, 200);
  const auto answer = client.answer();
  ASSERT_EQ(answer.status, 200) << answer.body;
  for (const auto& sample : answer.json()) {
    EXPECT_EQ(sample["meta_info"]["finish_reason"].dump(),
              R"({"type":"abort","message":"Aborted","status_code":null,"err_type":null})");
  }
  EXPECT_EQ(backend_->submitted().size(), 1u);
}

TEST_F(NativeApiTest, EachSampleOfAnAbortedStreamEndsOnce) {
  serve();
  // What is said of the first sample lets the others go to the rank; none of them ends by itself.
  backend_->set_script([this](const GenerateRequest&) { return std::vector<Word>{{.ids = ids("hello")}}; });
  for (const std::string target : {"/generate", "/v1/completions"}) {
    const bool native = target == "/generate";
    Json body = {{"rid", "r"}, {"stream", true}};
    body[native ? "text" : "prompt"] = "a";
    native ? body["sampling_params"] = {{"n", 3}} : body["n"] = 3;
    Client client(port_);
    client.send("POST", target, body.dump());
    ASSERT_TRUE(backend_->wait_for([](const auto& b) { return b.running().size() == 3; }));
    backend_->abort_all();
    std::map<int64_t, int> ends;
    std::map<int64_t, size_t> tokens;
    for (const auto& event : client.answer().events()) {
      const auto json = Json::parse(event, nullptr, /*allow_exceptions=*/false);
      if (!json.is_object()) continue;
      const auto& choice = native ? json : json["choices"][0];
      const auto& reason = native ? json["meta_info"]["finish_reason"] : choice["finish_reason"];
      const auto index = choice["index"].get<int64_t>();
      if (!reason.is_null()) ++ends[index];
      if (!native || !reason.is_null()) continue;
      EXPECT_GT(json["output_ids"].size(), std::exchange(tokens[index], json["output_ids"].size())) << "has no news";
    }
    EXPECT_THAT(ends, ElementsAre(std::pair(0, 1), std::pair(1, 1), std::pair(2, 1))) << target;
  }
}

TEST_F(NativeApiTest, ALongPromptIsTokenizedToTheSameIds) {
  serve();
  answer_with("x");
  std::string text;
  while (text.size() < 64 * 1024) text += " the quick brown fox";
  backend_->set_ranks([](auto& ranks) { ranks[0].info.context_length = ranks[0].info.max_req_input_len = 1 << 20; });
  ASSERT_EQ(post("/generate", {{"text", text}}).status, 200);
  EXPECT_EQ(backend_->submitted()[0].first.input_ids, ids(text));
}

TEST_F(NativeApiTest, HiddenStatesAreOneListForThePromptAndOneForEachTokenAfterIt) {
  options_.enable_return_hidden_states = true;
  override_ = R"({"hidden_size": 2})";
  serve();
  backend_->set_script([](const GenerateRequest& r) {
    EXPECT_TRUE(r.return_hidden_states);
    return std::vector<Word>{
        {.ids = {5}},
        {.ids = {6, 7}, .finish = {.kind = FinishKind::kLength}, .hidden_states = {0, 1, 2, 3, 4, 5, 6, 7.5}}};
  });
  const Json body = {{"input_ids", {1, 2}}, {"return_hidden_states", true}};
  EXPECT_EQ(post("/generate", body).json()["meta_info"]["hidden_states"].dump(),
            "[[[0.0,1.0],[2.0,3.0]],[4.0,5.0],[6.0,7.5]]");
  // In a stream they come with its last event.
  auto streaming = body;
  streaming["stream"] = true;
  const auto events = post("/generate", streaming).events();
  ASSERT_GE(events.size(), 2u);  // what is said at once may be one event
  for (size_t i = 0; i + 2 < events.size(); ++i) {
    EXPECT_FALSE(Json::parse(events[i])["meta_info"].contains("hidden_states"));
  }
  EXPECT_EQ(Json::parse(events[events.size() - 2])["meta_info"]["hidden_states"].size(), 3u);
  const auto huge = post("/generate", {{"input_ids", {1, 2}},
                                       {"return_hidden_states", true},
                                       {"sampling_params", {{"n", 128}, {"max_new_tokens", 2000}}}});
  EXPECT_EQ(huge.status, 200) << huge.body.substr(0, 300);  // 128 * 2002 * 2 values
}

TEST_F(NativeApiTest, WhatWouldBeTooManyHiddenStatesIsRefused) {
  options_.enable_return_hidden_states = true;
  serve();
  const auto answer = post("/generate", {{"text", Json::array({"a", "b"})},
                                         {"return_hidden_states", true},
                                         {"sampling_params", {{"n", 128}, {"max_new_tokens", 2040}}}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("return_hidden_states: 256 samples of "));
}

TEST_F(NativeApiTest, InsidesNeedTheirFlags) {
  serve();
  EXPECT_THAT(post("/generate", {{"text", "a"}, {"return_hidden_states", true}}).body,
              HasSubstr("--enable-return-hidden-states"));
  EXPECT_THAT(post("/generate", {{"text", "a"}, {"return_routed_experts", true}}).body,
              HasSubstr("--enable-return-routed-experts"));
}

TEST_F(NativeApiTest, AModelWithoutExpertsHasNoneToTellOf) {
  options_.enable_return_routed_experts = true;
  serve();
  const auto answer = post("/generate", {{"text", "a"}, {"return_routed_experts", true}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("it has no experts"));
}

TEST_F(NativeApiTest, RoutedExpertsAreTheirInt32InBase64) {
  options_.enable_return_routed_experts = true;
  model_ = "tiny-qwen3-moe";
  serve();
  backend_->set_script([](const GenerateRequest& r) {
    EXPECT_TRUE(r.return_routed_experts);
    return std::vector<Word>{{.ids = {5}, .finish = {.kind = FinishKind::kLength}, .routed_experts = {1, 258}}};
  });
  const auto json = post("/generate", {{"text", "a"}, {"return_routed_experts", true}}).json();
  EXPECT_EQ(json["meta_info"]["routed_experts"], "AQAAAAIBAAA=");
}

TEST_F(NativeApiTest, RowsInPlaceOfEmbeddingsShareAPrefixWithTheSameRowsAlone) {
  override_ = R"({"hidden_size": 2})";
  serve();
  backend_->set_script(
      [](const GenerateRequest&) { return std::vector<Word>{{.ids = {5}, .finish = {.kind = FinishKind::kLength}}}; });
  const auto sent = [&](const Json& rows) {
    const auto answer = post("/generate", {{"input_embeds", rows}, {"extra_key", "mine"}});
    EXPECT_EQ(answer.status, 200) << answer.body;
    return backend_->submitted().back().first;
  };
  const auto first = sent({{1, 2}, {3, 4}}), again = sent({{1, 2}, {3, 4}}), other = sent({{1, 2}, {3, 5}});
  EXPECT_EQ(first.input_ids, (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(first.input_embeds, (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(first.extra_key, again.extra_key);
  EXPECT_NE(first.extra_key, other.extra_key);
  EXPECT_TRUE(first.extra_key.starts_with("mine"));
  EXPECT_THAT(post("/generate", {{"input_embeds", {{1, 2, 3}, {1, 2, 3}}}}).body, HasSubstr("rows of 2 numbers"));
  EXPECT_THAT(
      post("/generate", {{"input_embeds", {{1, 2}, {3, 4}}}, {"return_logprob", true}, {"logprob_start_len", 0}}).body,
      HasSubstr("logprob_start_len must be -1"));
}

TEST_F(NativeApiTest, RowsInPlaceOfEmbeddingsAreBoundedForAllSamplesTogether) {
  override_ = R"({"hidden_size": 4})";
  serve();
  const std::vector<std::vector<int>> prompt(1025, std::vector<int>{1, 2, 3, 4});
  const std::vector<std::vector<std::vector<int>>> prompts(32, prompt);
  const auto answer = post("/generate", {{"input_embeds", prompts}, {"sampling_params", {{"n", 128}}}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("holds 4100 numbers, 4096 at most for a request of 4096 samples"));
}

}  // namespace
}  // namespace sluice::engine
