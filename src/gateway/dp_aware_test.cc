// --dp-aware: the ranks of an engine as workers of their own, over real sockets.
#include <future>
#include <map>
#include <set>

#include "gateway/body_scan.h"
#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

TEST(ChangedBodyTest, PutsTheRankUnderBothNamesAndLeavesTheRestAlone) {
  const auto ranked = [](std::string body) {
    const auto facts = scan_body(body, Endpoint::kGenerate);
    EXPECT_TRUE(facts.ok()) << body;
    return changed_body(body, *facts, {.rank = 3});
  };
  EXPECT_EQ(ranked("{}"), R"({"routed_dp_rank":3,"data_parallel_rank":3})");
  EXPECT_EQ(ranked(" { \n} "), " {\"routed_dp_rank\":3,\"data_parallel_rank\":3 \n} ");
  EXPECT_EQ(ranked(R"({"text": "a{b", "x":1.0e5})"),
            R"({"routed_dp_rank":3,"data_parallel_rank":3,"text": "a{b", "x":1.0e5})");
  EXPECT_EQ(ranked(R"({"routed_dp_rank" : 1 , "text":"x"})"),
            R"({"data_parallel_rank":3,"routed_dp_rank" : 3 , "text":"x"})");
  EXPECT_EQ(ranked(R"({"data_parallel_rank":null,"text":"x","routed_dp_rank":12})"),
            R"({"data_parallel_rank":3,"text":"x","routed_dp_rank":3})");
  EXPECT_EQ(ranked(R"({"routed_dp_rank":1,"routed_dp_rank":2,"data_parallel_rank":0})"),
            R"({"routed_dp_rank":3,"routed_dp_rank":3,"data_parallel_rank":3})")
      << "whichever of two equal keys an engine takes";
}

TEST(ChangedBodyTest, TheModelIsReplacedWhereverItStands) {
  std::string body = R"({"model":"alias", "messages":[{"model":"alias"}], "model" : "alias" })";
  const auto facts = scan_body(body, Endpoint::kChat);
  EXPECT_EQ(changed_body(body, *facts, {.rank = {}, .model = "the \"model\""}),
            R"({"model":"the \"model\"", "messages":[{"model":"alias"}], "model" : "the \"model\"" })");
}

class DpAwareTest : public GatewayFixture {
 protected:
  // An engine of four ranks behind a gateway that knows it.
  SimWorker& engine_of_four(const std::string& policy = "round_robin") {
    SimWorkerOptions options;
    options.dp_size = 4;
    SimWorker& engine = worker(options);
    start({"--dp-aware", "--policy", policy});
    EXPECT_TRUE(eventually([&] { return workers_json().size() == 4; })) << workers_json();
    return engine;
  }
  // The rank that the engine was told, by both names; -1 = none, -2 = they differ.
  static int64_t told_rank(const SimWorker& engine) {
    const Json body = Json::parse(last_post(engine).body);
    const int64_t routed = body.value("routed_dp_rank", int64_t{-1}),
                  older = body.value("data_parallel_rank", int64_t{-1});
    return routed == older ? routed : -2;
  }
  Result<net::Response> ask(const Json& more, net::Headers headers = {}) {
    Json body{{"text", "x"}, {"sampling_params", {{"max_new_tokens", 2}}}};
    if (more.is_object()) body.update(more);
    ++sent_;
    return call("POST", "/generate", body.dump(), std::move(headers));
  }
};

TEST_F(DpAwareTest, AmongManyRequestsAtOnceNoneGoesToAWrongRank) {
  SimWorker& engine = engine_of_four("min_cost");
  constexpr int kClients = 8, kEach = 40;
  std::vector<std::future<int>> clients;
  for (int client = 0; client < kClients; ++client) {
    sent_ += kEach;
    clients.push_back(std::async(std::launch::async, [&, client] {
      int served = 0;
      for (int i = 0; i < kEach; ++i) {
        const int rank = i % 2 == 0 ? (client + i / 2) % 4 : -1;  // every other one is pinned
        Json body{{"text", fmt::format("rank {} of {} {}", rank, client, i)}};
        if (rank >= 0) body[i % 4 == 0 ? "routed_dp_rank" : "data_parallel_rank"] = rank;
        const auto answer = call("POST", "/generate", body.dump());
        served += answer.ok() && answer->status == 200;
      }
      return served;
    }));
  }
  for (auto& client : clients) EXPECT_EQ(client.get(), kEach);
  std::map<int64_t, int> told;
  int pinned = 0;
  for (const auto& received : engine.received()) {
    if (received.method != "POST") continue;
    const Json body = Json::parse(received.body);
    const auto rank = body["routed_dp_rank"].get<int64_t>();
    EXPECT_EQ(body["data_parallel_rank"], rank) << received.body;
    ++told[rank];
    const int64_t wanted = std::stoll(body["text"].get<std::string>().substr(5));
    if (wanted < 0) continue;
    ++pinned;
    EXPECT_EQ(rank, wanted) << received.body;
  }
  EXPECT_EQ(pinned, kClients * kEach / 2);
  for (int64_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(metric("smg_worker_requests_total", {fmt::format("@{}\"", rank)}), told[rank]) << rank;
  }
  expect_settled();
}

TEST_F(DpAwareTest, DetailsThatAreGivenAgainAreThoseOfAllRanks) {
  const SimWorker& engine = engine_of_four();
  const Json again{{"url", engine.url()}, {"priority", 7}, {"models", Json::array({"named"})}};
  ASSERT_EQ(call("POST", "/workers", again.dump())->status, 202);
  const Json list = workers_json();
  ASSERT_EQ(list.size(), 4u);
  for (const Json& rank : list) EXPECT_EQ(rank["priority"], 7) << rank;
}

TEST_F(DpAwareTest, TheEndOfAnEngineIsThatOfAllItsRanksAndSoIsItsReturn) {
  const SimWorker& engine = engine_of_four();
  const auto healthy = [&] {
    const Json list = workers_json();
    return std::ranges::count_if(list, [](const Json& rank) { return rank["is_healthy"] == true; });
  };
  EXPECT_FALSE(gateway_->heard_within(engine.url(), std::chrono::seconds(10)));
  ASSERT_EQ(ask({{"routed_dp_rank", 2}})->status, 200);
  EXPECT_TRUE(gateway_->heard_within(engine.url(), std::chrono::seconds(10)));
  clock_.advance(std::chrono::seconds(11));
  EXPECT_FALSE(gateway_->heard_within(engine.url(), std::chrono::seconds(10)));
  gateway_->worker_ended(engine.url());
  EXPECT_EQ(healthy(), 0);
  gateway_->worker_started(engine.url());
  EXPECT_EQ(healthy(), 4);
  for (int64_t rank = 0; rank < 4; ++rank) ASSERT_EQ(ask({{"routed_dp_rank", rank}})->status, 200) << rank;
}

TEST_F(DpAwareTest, EachRankIsAWorkerThatIsChosenCountedAndShown) {
  SimWorker& engine = engine_of_four();
  std::map<int64_t, int> told;
  for (int i = 0; i < 8; ++i) {
    ASSERT_EQ(ask({})->status, 200);
    ++told[told_rank(engine)];
  }
  EXPECT_EQ(told, (std::map<int64_t, int>{{0, 2}, {1, 2}, {2, 2}, {3, 2}}));
  const Json list = workers_json();
  for (int64_t rank = 0; rank < 4; ++rank) {
    const Json& worker = list[static_cast<size_t>(rank)];
    EXPECT_EQ(worker["url"], fmt::format("{}@{}", engine.url(), rank));
    EXPECT_EQ(worker["dp_rank"], rank);
    EXPECT_EQ(worker["dp_size"], 4);
    EXPECT_EQ(worker["dp_base_url"], engine.url());
    EXPECT_EQ(worker["is_healthy"], true);
    EXPECT_EQ(worker["model_id"], "sim-model");
    EXPECT_EQ(metric("smg_worker_requests_total", {fmt::format("@{}\"", rank)}), 2);
  }
  EXPECT_EQ(metric("smg_worker_requests_total"), 8) << "nothing is counted for the engine as a whole";
  EXPECT_TRUE(eventually([&] { return metric("smg_upstream_connections", {engine.url() + "\"", "\"idle\""}) > 0; }));
  EXPECT_EQ(metric("smg_upstream_connections", {"@"}), 0) << "connections are of no one rank";
  expect_settled();
}

TEST_F(DpAwareTest, RanksThatComeWhileOthersServeBeginWithOneRequestAtATime) {
  SimWorker& engine = engine_of_four();
  engine.set_fault({.kind = Kind::kStall});
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return engine.active() == 1; }));
  SimWorkerOptions options;
  options.dp_size = 4;
  const SimWorker& late = worker(options);
  ASSERT_EQ(call("POST", "/workers", Json{{"url", late.url()}}.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == 8; })) << workers_json();
  for (const Json& rank : workers_json()) {
    EXPECT_EQ(rank["most_requests"], rank["dp_base_url"] == late.url() ? Json(1) : Json()) << rank;
  }
  client.leave();
}

TEST_F(DpAwareTest, ARankThatTheClientAsksForIsWhereItGoes) {
  SimWorker& engine = engine_of_four();
  for (const char* name : {"routed_dp_rank", "data_parallel_rank"}) {
    for (int64_t rank = 3; rank >= 0; --rank) {
      ASSERT_EQ(ask({{name, rank}})->status, 200);
      EXPECT_EQ(told_rank(engine), rank) << name;
    }
  }
  ASSERT_EQ(ask({{"routed_dp_rank", 2}, {"data_parallel_rank", 1}})->status, 200);
  EXPECT_EQ(told_rank(engine), 2) << "the newer name counts";
  ASSERT_EQ(ask({{"routed_dp_rank", 2}}, {{"X-Data-Parallel-Rank", "3"}})->status, 200);
  EXPECT_EQ(told_rank(engine), 3) << "the header before the body";
  EXPECT_EQ(last_post(engine).headers.get("X-Data-Parallel-Rank"), "3");
  ASSERT_EQ(ask({{"routed_dp_rank", nullptr}})->status, 200);
  EXPECT_GE(told_rank(engine), 0) << "null asks for none";
  expect_settled();
}

TEST_F(DpAwareTest, X4ARankThatIsNotThereIs400WithTheRange) {
  engine_of_four();
  for (const Json& rank : {Json(4), Json(-1), Json("1"), Json(1.5), Json::array({1})}) {
    const auto answer = ask({{"routed_dp_rank", rank}});
    EXPECT_EQ(answer->status, 400) << rank;
    EXPECT_NE(answer->body.find("routed_dp_rank must be an integer from 0 to 3"), std::string::npos) << answer->body;
  }
  for (const char* rank : {"4", "-1", "x", "99999999999999999999"}) {
    const auto answer = ask({}, {{"X-Data-Parallel-Rank", rank}});
    EXPECT_EQ(answer->status, 400) << rank;
    EXPECT_NE(answer->body.find("X-Data-Parallel-Rank must be an integer from 0 to 3"), std::string::npos);
  }
  expect_settled();
}

TEST_F(DpAwareTest, APrefixBringsItsRequestsBackToTheRankThatHoldsIt) {
  SimWorker& engine = engine_of_four("cache_aware");
  const std::string prompt(4000, 'p');
  ASSERT_EQ(generate(prompt + " one")->status, 200);
  const int64_t home = told_rank(engine);
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));
  for (int i = 0; i < 6; ++i) {
    ASSERT_EQ(generate(prompt + std::to_string(i))->status, 200);
    EXPECT_EQ(told_rank(engine), home);
  }
  expect_settled();
}

TEST_F(DpAwareTest, AnEngineWithoutRanksIsOneWorkerWhoseRequestsNameNone) {
  SimWorker& engine = worker();
  start({"--dp-aware"});
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == 1; }));
  ASSERT_EQ(ask({})->status, 200);
  EXPECT_EQ(told_rank(engine), -1);
  EXPECT_EQ(workers_json()[0]["url"], engine.url());
  EXPECT_EQ(ask({{"routed_dp_rank", 1}})->status, 400);
  expect_settled();
}

TEST_F(DpAwareTest, AnEngineThatDoesNotSayHowManyRanksItHasIsNotUsedYet) {
  time_ = &real_clock();
  SimWorkerOptions options;
  options.dp_size = 4;
  options.api_key = "new";
  auto engine = SimWorker::start(loops_, std::move(options)).value();
  start({"--dp-aware"});
  ASSERT_EQ(call("POST", "/workers", Json{{"url", engine->url()}, {"api_key", "old"}}.dump())->status, 202);
  ASSERT_TRUE(eventually([&] { return engine->counters().health_checks >= 2; })) << "it is asked again";
  ASSERT_EQ(workers_json().size(), 1u);
  EXPECT_EQ(workers_json()[0]["status"], "pending");
  const std::string path = "/workers/" + workers_json()[0]["id"].get<std::string>();
  ASSERT_EQ(call("PATCH", path, R"({"api_key":"new"})")->status, 202);
  EXPECT_TRUE(eventually([&] { return workers_json().size() == 4; })) << workers_json();
}

TEST_F(DpAwareTest, TheOldVerbAnswersWhenTheRanksServe) {
  start({"--dp-aware"});
  SimWorkerOptions options;
  options.dp_size = 2;
  SimWorker& engine = worker(options);
  EXPECT_EQ(call("POST", "/add_worker?url=" + engine.url())->status, 200);
  EXPECT_EQ(workers_json().size(), 2u);
  EXPECT_EQ(call("POST", "/remove_worker?url=" + engine.url())->status, 200);
  for (const Json& worker : workers_json()) EXPECT_EQ(worker["status"], "draining");
}

TEST_F(DpAwareTest, RemovingAnEngineRemovesItsRanks) {
  engine_of_four();
  const std::string id = workers_json()[0]["id"];
  EXPECT_EQ(call("DELETE", "/workers/" + id)->status, 202);
  for (const Json& worker : workers_json()) EXPECT_EQ(worker["status"], "draining");
  EXPECT_EQ(ask({})->status, 503);
}

TEST_F(DpAwareTest, ARankThatFailsLeavesTheRequestToAnother) {
  SimWorker& engine = engine_of_four();
  SimFault fault;
  fault.kind = Kind::kReset;
  fault.times = 1;
  engine.set_fault(fault);
  ASSERT_EQ(ask({})->status, 200);
  EXPECT_GT(told_rank(engine), 0) << "rank 0 broke";
  EXPECT_EQ(metric("smg_worker_retries_total"), 1);
  expect_settled();
}

TEST_F(DpAwareTest, WhatEndsOneRankSetsItsWholeEngineAside) {
  SimWorkerOptions options;
  options.dp_size = 4;
  SimWorker& ill = worker(options);
  SimWorker& well = worker(options);
  start({"--dp-aware", "--policy", "round_robin", "--disable-circuit-breaker", "--retry-initial-backoff-ms", "0"});
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health") == 8; })) << workers_json();
  for (const Kind kind : {Kind::kStatus, Kind::kReset}) {
    SimFault fault;
    fault.kind = kind;
    fault.status = 500;
    ill.set_fault(fault);
    // A reset on a kept-alive connection is sent once more to the same rank, so ranks are counted and not requests.
    std::map<std::string, std::set<int64_t>> asked;
    const auto ask_with_id = [&](int i) { return ask({{"rid", fmt::format("{}-{}", static_cast<int>(kind), i)}}); };
    for (int i = 0; i < 8; ++i) {
      ASSERT_EQ(ask_with_id(i)->status, 200) << i;
    }
    for (const auto& received : ill.received()) {
      if (received.method != "POST") continue;
      const Json body = Json::parse(received.body);
      asked[body["rid"]].insert(body["routed_dp_rank"].get<int64_t>());
    }
    EXPECT_FALSE(asked.empty());
    for (const auto& [rid, ranks] : asked) {
      EXPECT_EQ(ranks.size(), 1u) << "a retry of " << rid << " went to a rank of the engine that had just failed";
    }
  }
  EXPECT_GE(told_rank(well), 0);
  // Where no other engine can take it, its own ranks are asked.
  SimFault once;
  once.kind = Kind::kStatus;
  once.status = 500;
  once.times = 1;
  ill.set_fault(once);
  for (const Json& worker : workers_json()) {
    if (worker["dp_base_url"] != well.url()) continue;
    ASSERT_EQ(call("DELETE", "/workers/" + std::string(worker["id"]))->status / 100, 2);
  }
  ASSERT_EQ(ask({})->status, 200);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
