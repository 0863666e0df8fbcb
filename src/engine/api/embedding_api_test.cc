#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class EmbeddingApiTest : public ApiTest {
 protected:
  void serve_embeddings() {
    options_.is_embedding = true;
    serve();
    backend_->set_script([](const GenerateRequest& request) {
      EXPECT_TRUE(request.embed);
      return std::vector<Word>{{.ids = {}, .finish = {.kind = FinishKind::kLength}, .embedding = {0.6f, 0.0f, 0.8f}}};
    });
  }
};

TEST_F(EmbeddingApiTest, EmbedsTextsAndIds) {
  serve_embeddings();
  const auto one = post("/v1/embeddings", {{"input", "hello"}, {"model", "m"}}).json();
  EXPECT_EQ(one["object"], "list");
  EXPECT_EQ(one["model"], "m");
  ASSERT_EQ(one["data"].size(), 1u);
  EXPECT_EQ(one["data"][0]["object"], "embedding");
  EXPECT_FLOAT_EQ(one["data"][0]["embedding"][2].get<float>(), 0.8f);
  EXPECT_EQ(one["usage"]["prompt_tokens"], one["usage"]["total_tokens"]);
  EXPECT_GT(one["usage"]["prompt_tokens"], 0);

  const auto three = post("/v1/embeddings", {{"input", Json::parse("[[1,2],[3],[4]]")}}).json();
  ASSERT_EQ(three["data"].size(), 3u);
  EXPECT_EQ(three["data"][2]["index"], 2);
  EXPECT_EQ(three["usage"]["prompt_tokens"], 4);
}

TEST_F(EmbeddingApiTest, Base64IsTheFloatsAsTheyLieInMemory) {
  serve_embeddings();
  const auto answer = post("/v1/embeddings", {{"input", "a"}, {"encoding_format", "base64"}}).json();
  EXPECT_EQ(answer["data"][0]["embedding"], "mpkZPwAAAADNzEw/");  // 0x3f19999a, 0, 0x3f4ccccd
}

TEST_F(EmbeddingApiTest, FewerDimensionsHaveUnitLengthAgain) {
  serve_embeddings();
  const auto answer = post("/v1/embeddings", {{"input", "a"}, {"dimensions", 2}}).json();
  ASSERT_EQ(answer["data"][0]["embedding"].size(), 2u);
  EXPECT_FLOAT_EQ(answer["data"][0]["embedding"][0].get<float>(), 1.0f);
  const auto wrong = post("/v1/embeddings", {{"input", "a"}, {"dimensions", 100'000}});
  EXPECT_EQ(wrong.status, 400);
  EXPECT_THAT(wrong.body, HasSubstr("dimensions must be in [1, "));
}

TEST_F(EmbeddingApiTest, TheNativeFormHasTheNativeShape) {
  serve_embeddings();
  const auto one = post("/encode", {{"text", "a"}}).json();
  EXPECT_EQ(one["embedding"].size(), 3u);
  EXPECT_TRUE(one["meta_info"].contains("id"));
  EXPECT_EQ(post("/encode", {{"input_ids", Json::parse("[[1],[2]]")}}).json().size(), 2u);
  EXPECT_EQ(call("GET", "/model_info").json()["is_generation"], false);
}

TEST_F(EmbeddingApiTest, WithoutTheFlagItSaysWhichFlag) {
  serve();
  const auto answer = post("/v1/embeddings", {{"input", "a"}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("--is-embedding"));
  EXPECT_TRUE(backend_->submitted().empty());
}

TEST_F(EmbeddingApiTest, BadInputsAre400) {
  serve_embeddings();
  for (const char* body : {"{}", R"({"input":[]})", R"({"input":5})", R"({"input":"a","encoding_format":"int8"})",
                           R"({"input":"a","dimensions":0})", R"({"input":[["a"]]})"}) {
    EXPECT_EQ(call("POST", "/v1/embeddings", body).status, 400) << body;
  }
}

TEST_F(EmbeddingApiTest, ScoresAreTheProbabilitiesOfLabelsAfterEachItem) {
  serve();
  backend_->set_script([](const GenerateRequest& request) {
    PositionLogprobs scores{.chosen = TokenLogprob{-1, 7}, .top = {}, .requested = {}};
    for (const int32_t id : request.token_ids_logprob) {
      scores.requested.push_back({std::log(id == 5 ? 0.5f : 0.25f), id});
    }
    return std::vector<Word>{
        {.ids = {7}, .finish = {.kind = FinishKind::kLength}, .input_logprobs = {}, .output_logprobs = {scores}}};
  });
  const Json body = {{"query", "is it? "}, {"items", {"yes", "no"}}, {"label_token_ids", {5, 6}}};
  const auto plain = post("/v1/score", body).json();
  EXPECT_EQ(plain["object"], "scoring");
  ASSERT_EQ(plain["scores"].size(), 2u);
  EXPECT_NEAR(plain["scores"][0][0], 0.5, 1e-6);
  EXPECT_NEAR(plain["scores"][1][1], 0.25, 1e-6);
  EXPECT_EQ(backend_->submitted()[0].first.input_ids, tokenizer_->encode("is it? yes", true));

  Json other = body;
  other["apply_softmax"] = true;
  other["item_first"] = true;
  const auto softmax = post("/v1/score", other).json();
  EXPECT_NEAR(softmax["scores"][0][0], 2.0 / 3, 1e-6);
  EXPECT_EQ(backend_->submitted()[2].first.input_ids, tokenizer_->encode("yesis it? ", true));

  EXPECT_EQ(post("/v1/score", {{"query", "a"}, {"items", "b"}}).status, 400);
  EXPECT_EQ(post("/v1/score", {{"query", "a"}, {"items", {1, 2}}, {"label_token_ids", {5}}}).status, 400);
  const auto outside = post("/v1/score", {{"query", "a"}, {"items", "b"}, {"label_token_ids", {1'000'000}}});
  EXPECT_EQ(outside.status, 400);
  EXPECT_THAT(outside.body, HasSubstr("label_token_ids"));
}

TEST_F(EmbeddingApiTest, WhatNeedsAnotherHeadIs400) {
  serve();
  for (const char* path : {"/v1/classify", "/classify", "/v1/rerank"}) {
    const auto answer = post(path, Json::object());
    EXPECT_EQ(answer.status, 400) << path;
    EXPECT_THAT(answer.body, HasSubstr("/v1/score"));
  }
}

}  // namespace
}  // namespace sluice::engine
