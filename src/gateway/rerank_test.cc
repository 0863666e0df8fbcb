#include "gateway/rerank.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "gateway/client_json.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

constexpr const char* kList =
    R"([{"score":0.9,"document":"b","index":1,"meta_info":{"id":"x"}},{"score":0.5,"document":"a","index":0},)"
    R"({"score":0.1,"document":"c","index":2}])";

Json rebuilt(const char* request, const char* answer = kList) {
  const auto ask = read_rerank(request).value();
  return Json::parse(rerank_answer(ask, answer, "served", "req-1", 17).value());
}

TEST(RerankTest, AListBecomesTheObjectOfTheReference) {
  const auto answer = rebuilt(R"({"model":"m","query":"q","documents":["a","b","c"],"rid":"r"})");
  EXPECT_EQ(answer["object"], "rerank");
  EXPECT_EQ(answer["model"], "m");
  EXPECT_EQ(answer["id"], "r");
  EXPECT_EQ(answer["created"], 17);
  EXPECT_TRUE(answer.contains("usage") && answer["usage"].is_null());
  EXPECT_EQ(answer["results"], Json::parse(kList));
}

TEST(RerankTest, WhatTheRequestDoesNotNameComesFromTheGateway) {
  const auto answer = rebuilt(R"({"query":"q","model":null,"top_n":null})");
  EXPECT_EQ(answer["model"], "served");
  EXPECT_EQ(answer["id"], "req-1");
  EXPECT_EQ(answer["results"].size(), 3u);
}

TEST(RerankTest, TheTopAndTheDocumentsAreTheRequests) {
  EXPECT_EQ(rebuilt(R"({"top_k":2})")["results"].size(), 2u);
  EXPECT_EQ(rebuilt(R"({"top_n":1})")["results"].size(), 1u);
  EXPECT_EQ(rebuilt(R"({"top_n":1,"top_k":2})")["results"].size(), 1u);
  EXPECT_EQ(rebuilt(R"({"top_n":100,"top_k":-1})")["results"].size(), 3u);
  const auto bare = rebuilt(R"({"return_documents":false})");
  for (const auto& result : bare["results"]) EXPECT_FALSE(result.contains("document"));
  EXPECT_EQ(bare["results"][0]["index"], 1);
}

TEST(RerankTest, AnObjectWithResultsIsTakenToo) {
  const auto answer =
      rebuilt(R"({"top_n":1})", R"({"id":"w","usage":{"total_tokens":3},"results":[{"index":0},{"index":1}]})");
  EXPECT_EQ(answer["results"], Json::parse(R"([{"index":0}])"));
  EXPECT_EQ(answer["usage"]["total_tokens"], 3);
}

TEST(RerankTest, OtherAnswersAreRefused) {
  for (const char* answer : {"", "7", "{}", "[7]", R"({"results":7})", "[{]"}) {
    EXPECT_FALSE(rerank_answer({}, answer, "m", "i", 0).ok()) << answer;
  }
}

TEST(RerankTest, WrongFieldsAreNamed) {
  for (const auto& [body, field] : {std::pair{R"({"top_k":0})", "top_k"},
                                    {R"({"top_n":-2})", "top_n"},
                                    {R"({"top_n":"x"})", "top_n"},
                                    {R"({"top_n":1.5})", "top_n"},
                                    {R"({"return_documents":1})", "return_documents"}}) {
    const auto ask = read_rerank(body);
    ASSERT_FALSE(ask.ok()) << body;
    EXPECT_NE(ask.error().message.find(field), std::string::npos) << ask.error().message;
  }
}

TEST(ClientJsonTest, DepthIsBounded) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse_client_json(nested(kMaxJsonDepth)).ok());
  EXPECT_FALSE(parse_client_json(nested(kMaxJsonDepth + 1)).ok());
  EXPECT_FALSE(parse_client_json(nested(1'000'000)).ok());
  EXPECT_FALSE(parse_client_json(std::string(1'000'000, '{')).ok());
  EXPECT_TRUE(parse_client_json("\"" + std::string(1000, '[') + "\\\"[\"").ok()) << "brackets of a text do not count";
  EXPECT_FALSE(parse_client_json("[1,]").ok());
}

}  // namespace
}  // namespace sluice::gateway
