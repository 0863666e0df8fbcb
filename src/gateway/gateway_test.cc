// The gateway over real sockets, with simulated workers behind it.
#include "gateway/gateway.h"

#include <future>

#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

class GatewayTest : public GatewayFixture {};

TEST_F(GatewayTest, RelaysAnswersAndStreamsUnchanged) {
  SimWorker& one = worker();
  start();
  const auto whole = generate("a b c");
  ASSERT_TRUE(whole.ok()) << whole.error().message;
  EXPECT_EQ(whole->status, 200);
  EXPECT_TRUE(Json::parse(whole->body).contains("text")) << whole->body;
  EXPECT_TRUE(whole->headers.has("x-request-id"));
  EXPECT_EQ(whole->headers.get("x-smg-routed-worker-id"), one.url());
  const auto stream = generate("a b c", true);
  ASSERT_TRUE(stream.ok()) << stream.error().message;
  EXPECT_THAT(stream->body, HasSubstr("data: [DONE]"));
  const std::string odd = R"({ "unknown":1, "text":"x","sampling_params":{"max_new_tokens":1} } )";
  ASSERT_EQ(call("POST", "/generate", odd)->status, 200);
  EXPECT_EQ(last_post(one).body, odd);
  EXPECT_TRUE(eventually([&] { return in_flight() == 0; }));
}

TEST_F(GatewayTest, WhoeverChangesTheFleetWhileAnotherProcessTakesOverIsToldToComeAgain) {
  SimWorker& one = worker();
  start();
  const std::string id = workers_json()[0]["id"];
  const std::string priority = R"({"priority":7})", added = R"({"url":"http://127.0.0.1:1"})";
  EXPECT_THAT(*gateway_->bequeath().value().fleet, HasSubstr(one.url()));
  for (const auto& [method, target, body] : std::vector<std::array<std::string, 3>>{
           {"POST", "/workers", added},
           {"PATCH", "/workers/" + id, priority},
           {"PUT", "/workers/" + id, priority},
           {"DELETE", "/workers/" + id, ""},
           {"POST", "/add_worker?url=" + one.url(), ""},
           {"POST", "/remove_worker?url=" + one.url(), ""},
       }) {
    SCOPED_TRACE(fmt::format("{} {}", method, target));
    const auto answer = call(method, target, body);
    EXPECT_EQ(answer->status, 503);
    EXPECT_EQ(code_of(answer), "UPGRADE_UNDER_WAY");
    EXPECT_EQ(answer->headers.get("Retry-After"), "1");
  }
  EXPECT_EQ(call("GET", "/workers/" + id)->status, 200);
  EXPECT_EQ(workers_json().size(), 1u);
  EXPECT_EQ(workers_json()[0]["status"], "ready");
  EXPECT_EQ(generate()->status, 200);
  gateway_->keep_fleet();
  EXPECT_EQ(call("PATCH", "/workers/" + id, priority)->status, 202);
  EXPECT_EQ(workers_json()[0]["priority"], 7);
}

TEST_F(GatewayTest, AnswersItsOwnRoutes) {
  worker({.model = "m"});
  start();
  EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("GET", "/liveness")->status, 200);
  EXPECT_EQ(call("GET", "/readiness")->status, 200);
  for (const char* path : {"/health", "/liveness", "/readiness"}) {
    const auto head = call("HEAD", path);
    EXPECT_EQ(head->status, 200) << path;
    EXPECT_EQ(head->body, "");
    EXPECT_EQ(head->headers.get("content-length"), std::to_string(call("GET", path)->body.size()));
  }
  EXPECT_EQ(Json::parse(call("GET", "/v1/models")->body)["data"][0]["id"], "m");
  for (const char* path : {"/get_server_info", "/server_info", "/get_model_info", "/model_info", "/get_loads",
                           "/v1/loads", "/health_generate", "/list_workers"}) {
    EXPECT_EQ(call("GET", path)->status, 200) << path;
  }
  EXPECT_EQ(call("POST", "/flush_cache")->status, 200);
  EXPECT_EQ(call("GET", "/nowhere")->headers.get("X-SMG-Error-Code"), "unknown_url");
  const auto wrong = call("GET", "/generate");
  EXPECT_EQ(wrong->status, 405);
  EXPECT_EQ(wrong->headers.get("allow"), "POST");
  EXPECT_EQ(call("POST", "/generate", "{")->headers.get("X-SMG-Error-Code"), "json_parse_error");
  const auto traced = call("POST", "/generate", R"({"text":"x"})", {{"X-Request-Id", "mine"}});
  EXPECT_EQ(traced->headers.get("x-request-id"), "mine");
  // The record is written when the answer has gone.
  EXPECT_TRUE(eventually([&] { return Json::parse(call("GET", "/debug/why/mine")->body)["outcome"] == "ok"; }));
}

TEST_F(GatewayTest, AddsAndRemovesWorkers) {
  start({"--drain-settle-secs", "0"});
  EXPECT_EQ(call("GET", "/readiness")->status, 503);
  EXPECT_EQ(generate("x")->status, 503);
  SimWorker& one = worker();
  const auto added = call("POST", "/workers", Json{{"url", one.url()}}.dump());
  ASSERT_EQ(added->status, 202);
  EXPECT_EQ(Json::parse(call("POST", "/workers", Json{{"url", one.url()}}.dump())->body)["worker_id"],
            Json::parse(added->body)["worker_id"]);
  EXPECT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
  EXPECT_EQ(generate("x")->status, 200);
  const std::string location(*added->headers.get("location"));
  EXPECT_EQ(call("PATCH", location, R"({"priority":7})")->status, 202);
  EXPECT_EQ(Json::parse(call("GET", location)->body)["priority"], 7);
  EXPECT_EQ(call("GET", "/workers/nonsense")->status, 400);
  EXPECT_EQ(call("DELETE", location)->status, 202);
  EXPECT_TRUE(eventually([&] { return call("GET", location)->status == 404; }));
  EXPECT_EQ(call("POST", "/workers", "[]")->status, 400);
  const auto word = call("POST", "/workers", R"({"url":"foo"})");
  EXPECT_EQ(word->status, 400);
  EXPECT_THAT(word->body, HasSubstr("neither a scheme nor a port"));
}

TEST_F(GatewayTest, AsksForItsKey) {
  worker({.api_key = "secret"});
  start({"--api-key", "secret"});
  EXPECT_EQ(call("POST", "/generate", R"({"text":"x"})")->status, 401);
  EXPECT_EQ(call("GET", "/workers")->status, 401);
  EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("POST", "/generate", R"({"text":"x"})", {{"Authorization", "Bearer secret"}})->status, 200);
}

TEST_F(GatewayTest, SendsAPrefixWhereItIsCached) {
  worker();
  worker();
  start({"--policy", "cache_aware"});
  std::string prefix;
  for (int i = 0; i < 50; ++i) prefix += fmt::format("word{} ", i);
  const double nodes = metric("smg_prefix_index_nodes");
  const auto first = generate(prefix);
  ASSERT_EQ(first->status, 200);
  // The claim is applied by the index thread, soon after the choice.
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > nodes; }));
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(generate(prefix + std::to_string(i))->headers.get("x-smg-routed-worker-id"),
              first->headers.get("x-smg-routed-worker-id"));
  }
  expect_settled();
}

TEST_F(GatewayTest, WhatHasNoEffectOnAWorkerIsSaid) {
  start();
  const SimWorker& one = worker();
  const auto plain = call("POST", "/workers", Json{{"url", one.url()}, {"worker_type", nullptr}}.dump());
  ASSERT_EQ(plain->status, 202) << plain->body;
  EXPECT_FALSE(Json::parse(plain->body).contains("ignored"));
  const Json body{{"url", one.url()},
                  {"worker_type", "Regular"},
                  {"connection_mode", "HTTP"},
                  {"model_id", "m"},
                  {"labels", {{"a", "b"}}},
                  {"priority", 7},
                  {"cost", 2.5},
                  {"resilience", {{"max_retries", 9}, {"retryable_status_codes", {500}}}},
                  {"http_pool", {{"timeout_secs", 9}}},
                  {"disable_health_check", true}};
  const auto more = call("POST", "/workers", body.dump());
  ASSERT_EQ(more->status, 202) << more->body;
  EXPECT_EQ(Json::parse(more->body)["ignored"], (Json{"http_pool", "resilience.retryable_status_codes"}));
  const Json list = workers_json();
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0]["priority"], 7);
  EXPECT_EQ(list[0]["cost"], 2.5);
}

TEST_F(GatewayTest, AWorkerOfAnotherKindIsRefused) {
  start();
  for (const auto& [field, value] : {std::pair<const char*, Json>{"worker_type", "prefill"},
                                     {"worker_type", "decode"},
                                     {"worker_type", 7},
                                     {"worker_type", ""},
                                     {"connection_mode", "grpc"},
                                     {"connection_mode", Json{{"type", "grpc"}}}}) {
    const auto answer = call("POST", "/workers", Json{{"url", "http://127.0.0.1:1"}, {field, value}}.dump());
    EXPECT_EQ(answer->status, 400) << field << value;
    EXPECT_THAT(answer->body, HasSubstr(field)) << value;
  }
  EXPECT_TRUE(workers_json().empty()) << "none of them was added";
}

TEST_F(GatewayTest, AWrongWorkerRequestIsToldSo) {
  worker();
  start();
  for (const char* body : {"", "[]", "{}", R"({"url":7})", R"({"url":"grpc://h:1"})", R"({"url":"h:1","api_key":7})"}) {
    const auto answer = call("POST", "/workers", body);
    EXPECT_EQ(answer->status, 400) << body;
    EXPECT_EQ(Json::parse(answer->body)["code"], "BAD_REQUEST") << body;
  }
  const auto unknown = call("GET", "/workers/00000000-0000-4000-8000-000000000000");
  EXPECT_EQ(unknown->status, 404);
  EXPECT_EQ(Json::parse(unknown->body)["code"], "WORKER_NOT_FOUND");
  const std::string location = "/workers/" + workers_json()[0]["id"].get<std::string>();
  for (const char* body : {"[]", R"({"url":"http://other:1"})", R"({"priority":"x"})", R"({"labels":7})"}) {
    EXPECT_EQ(call("PUT", location, body)->status, 400) << body;
  }
  EXPECT_EQ(
      call("GET", "/workers/" + std::string("http%3A%2F%2F127.0.0.1%3A") + std::to_string(workers_[0]->port()))->status,
      200)
      << "a worker is also found by its URL";
}

TEST_F(GatewayTest, TheKeyOfAWorkerThatWasAddedIsItsOwn) {
  auto added = SimWorker::start(loops_, {.api_key = "mine"}).value();
  start({"--api-key", "gateway"});
  const net::Headers key = {{"Authorization", "Bearer gateway"}};
  ASSERT_EQ(call("POST", "/workers", Json{{"url", added->url()}, {"api_key", "mine"}}.dump(), key)->status, 202);
  ASSERT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
  EXPECT_EQ(call("POST", "/generate", R"({"text":"x"})", key)->status, 200);
  EXPECT_EQ(last_post(*added).headers.get("authorization"), "Bearer mine");
}

TEST_F(GatewayTest, FlushReachesEveryWorkerAndTellsWhoFailed) {
  SimWorker& one = worker();
  SimWorker& two = worker();
  start();
  EXPECT_EQ(call("POST", "/flush_cache")->status, 200);
  EXPECT_EQ(one.counters().flushes + two.counters().flushes, 2);
  two.stop();
  const auto partial = call("POST", "/flush_cache");
  EXPECT_EQ(partial->status, 206);
  const auto document = Json::parse(partial->body);
  EXPECT_EQ(document["status"], "partial_success");
  EXPECT_EQ(document["workers_flushed"], 1);
  EXPECT_EQ(document["failed"][0]["worker"], two.url());
}

TEST_F(GatewayTest, LoadsHaveARowForEachWorkerAlsoForADeadOne) {
  worker();
  SimWorker& dead = worker();
  start();
  dead.stop();
  const auto document = Json::parse(call("GET", "/get_loads")->body);
  ASSERT_EQ(document["workers"].size(), 2u);
  EXPECT_GE(document["workers"][0]["load"].get<int64_t>(), 0);
  EXPECT_EQ(document["workers"][1]["load"], -1);
}

TEST_F(GatewayTest, AnswersCarryAnIdAndAllowOtherOrigins) {
  SimWorker& one = worker();
  start();
  const auto answer = call("POST", "/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}]})");
  ++sent_;
  ASSERT_EQ(answer->status, 200);
  const std::string id(answer->headers.get("x-request-id").value_or(""));
  EXPECT_TRUE(id.starts_with("chatcmpl-") && id.size() == 9 + 24) << id;
  EXPECT_FALSE(last_post(one).headers.has("x-request-id")) << "a generated id stays here";
  EXPECT_EQ(answer->headers.get("access-control-allow-origin"), "*");
  EXPECT_EQ(
      call("OPTIONS", "/generate", "", {{"Origin", "http://a"}, {"Access-Control-Request-Method", "POST"}})->status,
      200);
  ++sent_;
  EXPECT_EQ(call("POST", "/generate", R"({"text":"x"})", {{"X-Correlation-Id", "abc"}})->headers.get("x-request-id"),
            "abc");
  expect_settled();
}

TEST_F(GatewayTest, AModelThatNobodyServesIsTheEnginesToJudge) {
  SimWorker& one = worker({.model = "m"});
  start();
  ++sent_;
  ASSERT_EQ(call("POST", "/generate", R"({"model":"zzz","text":"x","weird":1})")->status, 200);
  EXPECT_EQ(last_post(one).body, R"({"model":"zzz","text":"x","weird":1})");
  EXPECT_EQ(metric("smg_router_requests_total", {"zzz"}), 0) << "what clients send is no label";
  expect_settled();
}

TEST_F(GatewayTest, RoundRobinServesTheWorkersInTurn) {
  for (int i = 0; i < 4; ++i) worker();
  start({"--policy", "round_robin"});
  for (int i = 0; i < 8; ++i) ASSERT_EQ(generate()->status, 200);
  for (const auto& one : workers_) EXPECT_EQ(one->counters().generations, 2);
  expect_settled();
}

TEST_F(GatewayTest, ALoopNumberIsTaken) {
  worker();
  start({"--runtime-worker-threads", "1"});
  EXPECT_EQ(generate()->status, 200);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
