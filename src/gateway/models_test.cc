// Several models behind one gateway, over real sockets.
#include <algorithm>
#include <set>

#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

class ModelsTest : public GatewayFixture {
 protected:
  SimWorker& serving(const std::string& model) {
    SimWorkerOptions options;
    options.model = model;
    return worker(options);
  }
  void start_and_learn(std::vector<std::string> flags, std::set<std::string> models) {
    start(std::move(flags));
    ASSERT_TRUE(eventually([&] {
      std::set<std::string> seen;
      for (const Json& worker : workers_json()) seen.insert(worker["model_id"].get<std::string>());
      return seen == models;
    })) << workers_json();
  }
  Result<net::Response> ask(const Json& model, const std::string& text = "x") {
    Json body{{"text", text}, {"sampling_params", {{"max_new_tokens", 2}}}};
    if (!model.is_null()) body["model"] = model;
    ++sent_;
    return call("POST", "/generate", body.dump());
  }
};

TEST_F(ModelsTest, ARequestGoesToTheWorkersOfItsModel) {
  SimWorker& a = serving("model-a");
  SimWorker& b1 = serving("model-b");
  SimWorker& b2 = serving("model-b");
  start_and_learn({"--enable-igw", "--policy", "round_robin"}, {"model-a", "model-b"});
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(ask("model-a")->status, 200);
    ASSERT_EQ(ask("model-b")->status, 200);
  }
  EXPECT_EQ(a.counters().generations, 6);
  EXPECT_EQ(b1.counters().generations, 3);
  EXPECT_EQ(b2.counters().generations, 3);
  EXPECT_EQ(metric("smg_router_requests_total", {"model=\"model-a\""}), 6);
  EXPECT_EQ(metric("smg_router_requests_total", {"model=\"model-b\""}), 6);

  const Json listed = Json::parse(call("GET", "/v1/models")->body)["data"];
  EXPECT_EQ(listed.size(), 2u) << "each model once: " << listed;
  EXPECT_EQ(Json::parse(call("GET", "/workers?model=model-b")->body)["total"], 2);

  EXPECT_EQ(code_of(ask(nullptr)), "missing_model");
  const auto unknown = ask("model-c");
  EXPECT_EQ(unknown->status, 404);
  EXPECT_EQ(code_of(unknown), "model_not_found");
  expect_settled();
}

TEST_F(ModelsTest, RequestsThatFindNoWorkerCountForTheirModel) {
  SimWorker& a = serving("model-a");
  serving("model-b");
  start_and_learn({"--enable-igw", "--disable-retries"}, {"model-a", "model-b"});
  gateway_->worker_ended(a.url());
  ASSERT_EQ(ask("model-a")->status, 503);
  EXPECT_TRUE(eventually([&] { return metric("smg_router_request_errors_total", {"model=\"model-a\""}) == 1; }));
  EXPECT_EQ(metric("smg_router_requests_total", {"model=\"model-a\""}), 1);
  expect_settled();
}

TEST_F(ModelsTest, ARefusedRequestCountsForTheModelThatItNames) {
  serving("model-a");
  start_and_learn({"--enable-igw", "--dp-aware"}, {"model-a"});
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == 1; }));
  ++sent_;
  ASSERT_EQ(call("POST", "/generate", R"({"text":"x","model":"model-a","routed_dp_rank":7})")->status, 400);
  EXPECT_TRUE(eventually([&] { return metric("smg_router_request_errors_total", {"model=\"model-a\""}) == 1; }));
  ASSERT_EQ(ask("model-b")->status, 404);
  EXPECT_TRUE(eventually([&] { return metric("smg_router_request_errors_total", {"model=\"unknown\""}) == 1; }))
      << "what no worker serves is no label";
  expect_settled();
}

TEST_F(ModelsTest, AListThatDidNotComeIsAskedForAgain) {
  SimWorker& one = serving("model-a");
  const auto asked = [&] {
    return std::ranges::any_of(one.received(), [](const auto& request) { return request.target == "/v1/models"; });
  };
  one.set_fault({.kind = Kind::kStatus, .scope = SimFault::Scope::kEverything, .status = 500});
  start({"--enable-igw", "--disable-health-check"});
  ASSERT_TRUE(eventually(asked));
  one.clear_fault();
  clock_.advance(std::chrono::seconds(1));
  EXPECT_TRUE(eventually([&] { return workers_json()[0]["model_id"] == "model-a"; })) << "though nobody checks it";
  EXPECT_EQ(ask("model-a")->status, 200);
  expect_settled();
}

TEST_F(ModelsTest, AKeyThatIsMendedBringsTheModel) {
  time_ = &real_clock();
  auto one = SimWorker::start(loops_, {.model = "model-a", .api_key = "new"}).value();
  start({"--enable-igw"});
  ASSERT_EQ(call("POST", "/workers", Json{{"url", one->url()}, {"api_key", "old"}}.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
  EXPECT_EQ(code_of(ask("model-a")), "model_not_found");
  const std::string path = "/workers/" + workers_json()[0]["id"].get<std::string>();
  ASSERT_EQ(call("PATCH", path, R"({"api_key":"new"})")->status, 202);
  EXPECT_TRUE(eventually([&] { return ask("model-a")->status == 200; }));
  expect_settled();
}

TEST_F(ModelsTest, OneModelIsAnEntryOfTheList) {
  serving("org/model-a");
  serving("model-b");
  start_and_learn({}, {"org/model-a", "model-b"});
  const Json listed = Json::parse(call("GET", "/v1/models")->body)["data"];
  for (const char* path : {"/v1/models/org/model-a", "/v1/models/org%2Fmodel-a", "/v1/models/model-b"}) {
    const auto found = call("GET", path);
    ASSERT_EQ(found->status, 200) << path;
    EXPECT_NE(std::ranges::find(listed, Json::parse(found->body)), listed.end()) << found->body;
  }
  EXPECT_EQ(Json::parse(call("GET", "/v1/models/model-b")->body)["id"], "model-b");
  const auto unknown = call("GET", "/v1/models/model-c");
  EXPECT_EQ(unknown->status, 404);
  EXPECT_EQ(code_of(unknown), "model_not_found");
  EXPECT_EQ(Json::parse(unknown->body)["error"]["code"], "model_not_found");
  EXPECT_EQ(call("DELETE", "/v1/models/model-b")->status, 405);
}

TEST_F(ModelsTest, WithoutWorkersNoModelIsKnown) {
  start();
  EXPECT_EQ(code_of(call("GET", "/v1/models/model-a")), "no_workers");
}

TEST_F(ModelsTest, AWorkerThatIsAddedLaterBringsItsModel) {
  serving("model-a");
  start_and_learn({"--enable-igw"}, {"model-a"});
  EXPECT_EQ(ask("model-b")->status, 404);
  SimWorker& b = serving("model-b");
  const Json added{{"url", b.url()}, {"labels", {{"policy", "manual"}}}};
  EXPECT_EQ(call("POST", "/workers", added.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return ask("model-b")->status == 200; }));
  EXPECT_EQ(metric("smg_worker_selections_total", {b.url(), "policy=\"manual\""}), 1) << "the label names its policy";
  EXPECT_EQ(code_of(call("POST", "/workers", R"({"url":"http://h:1","labels":{"policy":"best"}})")), "BAD_REQUEST");
  expect_settled();
}

TEST_F(ModelsTest, AnAliasIsAnotherNameAndTheWorkerGetsItsOwn) {
  SimWorker& only = serving("model-a");
  serving("model-b");
  start_and_learn({"--enable-igw", "--model-alias", "gpt-4=model-a", "fast=model-b"}, {"model-a", "model-b"});
  ASSERT_EQ(ask("gpt-4")->status, 200);
  EXPECT_EQ(Json::parse(last_post(only).body)["model"], "model-a");
  EXPECT_EQ(metric("smg_router_requests_total", {"model=\"model-a\""}), 1);
  expect_settled();
}

TEST_F(ModelsTest, TheSameTextIsAnotherPrefixForAnotherModel) {
  serving("model-a");
  serving("model-b");
  start_and_learn({"--enable-igw"}, {"model-a", "model-b"});
  const std::string prompt(2000, 'p');
  for (const char* model : {"model-a", "model-b"}) {
    ASSERT_EQ(ask(model, prompt)->status, 200);
    ASSERT_EQ(ask(model, prompt + "!")->status, 200);
  }
  EXPECT_EQ(metric("smg_worker_selections_total", {"reason=\"prefix_miss\""}), 2);
  EXPECT_EQ(metric("smg_worker_selections_total", {"reason=\"prefix_held\""}), 2);
  // A name that is longer than the prompt is no part of the match.
  ASSERT_EQ(ask("model-a", "short")->status, 200);
  EXPECT_EQ(metric("smg_worker_selections_total", {"reason=\"prefix_miss\""}), 3);
  expect_settled();
}

TEST_F(ModelsTest, AResponseIsLookedForAtTheWorkersOfTheModel) {
  serving("model-a");
  SimWorker& second = serving("model-a");
  SimWorker& other = serving("model-b");
  start_and_learn({"--enable-igw"}, {"model-a", "model-b"});
  const auto go_on = [&] {
    ++sent_;
    return call("POST", "/v1/responses", R"({"model":"model-a","input":"x","previous_response_id":"resp_1"})")->status;
  };
  other.stop();
  EXPECT_EQ(go_on(), 404) << "of one that has no responses: what another model's worker keeps does not matter";
  second.stop();
  EXPECT_EQ(go_on(), 503) << "it may have been there";
  expect_settled();
}

TEST_F(ModelsTest, TheHitRateOfEachIsItsOwn) {
  SimWorkerOptions canned{.canned = true, .canned_prompt_tokens = 16, .canned_cached_tokens = 4};
  canned.model = "model-a";
  worker(canned);
  canned.model = "model-b";
  canned.canned_cached_tokens = 12;
  worker(canned);
  start_and_learn({"--enable-igw"}, {"model-a", "model-b"});
  const auto rate = [&](const char* source, const char* model) {
    return metric("sglang_cache_hit_rate", {fmt::format("source=\"{}\"", source), fmt::format("model=\"{}\"", model)});
  };
  const std::string prompt(2000, 'p');
  for (int i = 0; i < 2; ++i) ASSERT_EQ(ask("model-a", prompt)->status, 200);
  ASSERT_EQ(ask("model-b", prompt)->status, 200);
  EXPECT_EQ(rate("reported", "model-a"), 0.25);
  EXPECT_EQ(rate("reported", "model-b"), 0.75);
  EXPECT_EQ(rate("predicted", "model-a"), 0.5);
  EXPECT_EQ(rate("predicted", "model-b"), 0);
  EXPECT_EQ(metric("sglang_cache_hit_rate"), 1.5) << "and no sum of them";
  clock_.advance(std::chrono::seconds(61));
  EXPECT_THAT(gateway_->metrics().render(), ::testing::Not(::testing::HasSubstr("sglang_cache_hit_rate{")));
  expect_settled();
}

TEST_F(ModelsTest, WithOneModelAnyNameDoesUnlessTheMatchIsStrict) {
  serving("model-a");
  start_and_learn({}, {"model-a"});
  EXPECT_EQ(ask("whatever")->status, 200);
  EXPECT_EQ(ask(nullptr)->status, 200);
  gateway_.reset();
  sent_ = 0;
  start_and_learn({"--strict-model-match"}, {"model-a"});
  EXPECT_EQ(code_of(ask("whatever")), "model_not_found");
  EXPECT_EQ(ask("model-a")->status, 200);
  EXPECT_EQ(ask(nullptr)->status, 200);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
