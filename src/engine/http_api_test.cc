// Paths, methods, keys: what stands before every endpoint.
#include "engine/http_api.h"

#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

constexpr const char* kJsonType = "Content-Type: application/json\r\n";

std::string bearer(const std::string& key) { return fmt::format("{}Authorization: Bearer {}\r\n", kJsonType, key); }

TEST_F(ApiTest, AnUnknownPathIs404AndAWrongMethod405) {
  serve();
  EXPECT_EQ(call("GET", "/nothing").status, 404);
  EXPECT_EQ(call("GET", "/nothing").json()["object"], "error");
  const auto wrong = call("GET", "/generate");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_THAT(wrong.head, HasSubstr("Allow: POST, PUT"));
  EXPECT_EQ(call("OPTIONS", "/generate").status, 204);
  const auto hint = call("GET", "/get_weight_version");
  EXPECT_EQ(hint.status, 404);
  EXPECT_THAT(hint.body, HasSubstr("/model_info"));
}

TEST_F(ApiTest, WhatIsNotBuiltIs501AndNamesTheEndpoint) {
  serve();
  const auto answer = call("POST", "/slow_down", "{}");
  EXPECT_EQ(answer.status, 501);
  EXPECT_EQ(answer.json()["code"], 501);
  EXPECT_THAT(answer.body, HasSubstr("/slow_down is a hook of the runtime's own tests"));
  EXPECT_THAT(call("POST", "/update_weights_from_tensor").body, HasSubstr("/update_weights_from_disk"));
}

TEST_F(ApiTest, KeysGuardNormalAndAdminEndpoints) {
  options_.api_key = "k1";
  options_.admin_api_key = "k2";
  serve();
  const auto refused = call("GET", "/v1/models");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.body, R"({"error":"Unauthorized"})");
  EXPECT_EQ(call("GET", "/v1/models", "", bearer("k1")).status, 200);
  EXPECT_EQ(call("GET", "/v1/models", "", bearer("k11")).status, 401);
  EXPECT_EQ(call("POST", "/flush_cache", "", bearer("k1")).status, 401);
  EXPECT_EQ(call("POST", "/flush_cache", "", bearer("k2")).status, 200);
  EXPECT_EQ(call("GET", "/metrics").status, 200);
  const auto info = call("GET", "/server_info", "", bearer("k1"));
  EXPECT_THAT(info.body, ::testing::Not(HasSubstr("\"k1\"")));
  EXPECT_THAT(info.body, ::testing::Not(HasSubstr("\"k2\"")));
}

TEST_F(ApiTest, AdminEndpointsFallBackToTheApiKey) {
  options_.api_key = "k1";
  serve();
  EXPECT_EQ(call("POST", "/flush_cache").status, 401);
  EXPECT_EQ(call("POST", "/flush_cache", "", bearer("k1")).status, 200);
}

TEST_F(ApiTest, OpenAiBodiesMustBeDeclaredAsJson) {
  serve();
  answer_with("hello");
  const std::string body = R"({"prompt":"a"})";
  EXPECT_EQ(call("POST", "/v1/completions", body, "Content-Type: text/plain\r\n").status, 400);
  EXPECT_EQ(call("POST", "/v1/completions", body, "").status, 400);
  EXPECT_EQ(call("POST", "/v1/completions", body, "Content-Type: application/json; charset=utf-8\r\n").status, 200);
}

TEST_F(ApiTest, MetricsAreOffUnlessAskedFor) {
  options_.enable_metrics = false;
  serve();
  EXPECT_EQ(call("GET", "/metrics").status, 404);
}

}  // namespace
}  // namespace sluice::engine
