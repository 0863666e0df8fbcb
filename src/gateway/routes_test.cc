// Routes that ask every worker, and those whose answer is rebuilt or refused, over real sockets.
#include <atomic>
#include <boost/asio/redirect_error.hpp>

#include "gateway/gateway_fixture.h"
#include "gateway/scripted_worker_fixture.h"
#include "net/stream.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RoutesTest : public GatewayFixture {
 protected:
  using Received = ScriptedWorker::Received;

  template <class F>
  ScriptedWorker& scripted(F answer) {
    scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, ScriptedWorker::Answer(std::move(answer))));
    return *scripted_.back();
  }
  // One that reads a request and says nothing.
  ScriptedWorker& silent() {
    const auto serve = [](net::ServerExchange& exchange, const Received&) -> net::Task<> {
      auto gone = std::make_shared<net::Timer>(exchange.loop().executor(), TimePoint::max());
      exchange.on_client_gone([gone] { gone->expires_at(TimePoint{}); });
      boost::system::error_code ended;
      co_await gone->async_wait(net::asio::redirect_error(net::use_task, ended));
    };
    scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, ScriptedWorker::Serve(serve)));
    return *scripted_.back();
  }
  void start_all(const std::vector<std::string>& flags = {}) {
    start(flags);
    for (const auto& one : scripted_) gateway_->worker_started(one->url());
  }
  static net::Response ok() { return net::Response::json(200, "{}"); }

  std::vector<std::unique_ptr<ScriptedWorker>> scripted_;
};

// --- rerank --------------------------------------------------------------------------------------------------------

TEST_F(RoutesTest, RerankIsRebuiltOnBothPaths) {
  const auto rank = [](const Received&) {
    return net::Response::json(200,
                               R"([{"score":0.9,"document":"b","index":1},{"score":0.1,"document":"a","index":0}])");
  };
  ScriptedWorker& one = scripted(rank);
  start_all();
  const std::string body = R"({"model":"m", "query":"q","documents":["a","b"],"top_n":1,"return_documents":false})";
  for (const char* path : {"/v1/rerank", "/rerank"}) {
    ++sent_;
    const auto answer = call("POST", std::string(path) + "?x=1", body, {{"Accept-Encoding", "gzip"}});
    ASSERT_EQ(answer->status, 200) << answer->body;
    const auto document = Json::parse(answer->body);
    EXPECT_EQ(document["results"], Json::parse(R"([{"score":0.9,"index":1}])"));
    EXPECT_EQ(document["model"], "m");
    EXPECT_EQ(document["object"], "rerank");
    EXPECT_EQ(document["id"], answer->headers.get("x-request-id").value());
    EXPECT_EQ(document["created"], clock_.unix_nanos() / 1'000'000'000);
    const auto got = one.received().back();
    EXPECT_EQ(got.target, "/v1/rerank?x=1");
    EXPECT_EQ(got.body, body);
    EXPECT_FALSE(got.headers.has("accept-encoding")) << "its answer is read by the gateway";
  }
  EXPECT_EQ(metric("smg_router_requests_total", {"endpoint=\"rerank\""}), 2);
  expect_settled();
}

TEST_F(RoutesTest, RerankErrorsAreSaid) {
  const auto nonsense = [](const Received& received) {
    return received.body.find("bad") == std::string::npos ? net::Response::json(200, "{}")
                                                          : net::Response::json(422, R"({"error":"theirs"})");
  };
  scripted(nonsense);
  start_all();
  EXPECT_EQ(code_of(call("POST", "/rerank", R"({"query":"q"})")), "rerank_response_build_failed");
  const auto theirs = call("POST", "/rerank", R"({"query":"bad"})");
  EXPECT_EQ(theirs->status, 422);
  EXPECT_EQ(theirs->body, R"({"error":"theirs"})");
  const auto wrong = call("POST", "/rerank", R"({"query":"q","top_k":0})");
  EXPECT_EQ(wrong->status, 400);
  EXPECT_THAT(wrong->body, HasSubstr("top_k must be an integer of at least 1"));
}

// --- stored responses ----------------------------------------------------------------------------------------------

TEST_F(RoutesTest, TheWorkerThatKnowsAResponseAnswers) {
  const auto knows = [](const Received& received) {
    return net::Response::json(200, Json{{"method", received.method}, {"target", received.target}}.dump());
  };
  const auto knows_not = [](const Received&) { return net::Response::json(404, R"({"error":"no"})"); };
  scripted(knows_not);
  ScriptedWorker& one = scripted(knows);
  silent();  // it is not waited for
  start_all();
  const auto got = call("GET", "/v1/responses/resp_1?include=x");
  ASSERT_EQ(got->status, 200);
  EXPECT_EQ(Json::parse(got->body)["target"], "/v1/responses/resp_1?include=x");
  const auto cancelled = call("POST", "/v1/responses/resp_1/cancel", "ignored");
  ASSERT_EQ(cancelled->status, 200);
  EXPECT_EQ(Json::parse(cancelled->body)["method"], "POST");
  EXPECT_EQ(one.received().back().body, "");
}

TEST_F(RoutesTest, WithAGoodAnswerNoQuestionIsLeft) {
  // On the one loop of all workers: the keeper speaks when the silent one has been asked.
  net::Timer is_asked(loops_[0].executor(), TimePoint::max());
  const auto keeps = [&](net::ServerExchange& exchange, const Received&) -> net::Task<> {
    boost::system::error_code ended;
    co_await is_asked.async_wait(net::asio::redirect_error(net::use_task, ended));
    auto answer = ok();
    co_await exchange.respond(std::move(answer));
  };
  const auto is_silent = [&](net::ServerExchange& exchange, const Received&) -> net::Task<> {
    is_asked.expires_at(TimePoint{});
    auto gone = std::make_shared<net::Timer>(exchange.loop().executor(), TimePoint::max());
    exchange.on_client_gone([gone] { gone->expires_at(TimePoint{}); });
    boost::system::error_code ended;
    co_await gone->async_wait(net::asio::redirect_error(net::use_task, ended));
  };
  scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, ScriptedWorker::Serve(keeps)));
  scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, ScriptedWorker::Serve(is_silent)));
  start_all();
  EXPECT_EQ(call("GET", "/v1/responses/resp_1")->status, 200);
  ASSERT_EQ(scripted_[1]->received().size(), 1U);
  EXPECT_TRUE(eventually([&] { return metric("smg_upstream_connections", {"state=\"busy\""}) == 0; }));
}

TEST_F(RoutesTest, WhatGoesOnFromAResponseGoesToTheWorkerThatKeepsIt) {
  const auto keeps = [](const std::string& id) {
    return [id](const Received& received) {
      const bool is_mine = received.method == "POST" || received.target == "/v1/responses/" + id;
      return is_mine ? net::Response::json(200, Json{{"id", id}}.dump())
                     : net::Response::json(404, R"({"error":"no"})");
    };
  };
  ScriptedWorker& first = scripted(keeps("resp_1"));
  ScriptedWorker& second = scripted(keeps("resp_2"));
  start_all();
  const auto go_on = [&](const std::string& id) {
    ++sent_;
    const auto answer =
        call("POST", "/v1/responses", Json{{"model", "m"}, {"input", "x"}, {"previous_response_id", id}}.dump(),
             {{"Authorization", "Bearer mine"}});
    return answer->status == 200 ? Json::parse(answer->body)["id"].get<std::string>() : std::to_string(answer->status);
  };
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(go_on("resp_1"), "resp_1");
    EXPECT_EQ(go_on("resp_2"), "resp_2");
  }
  EXPECT_EQ(second.received().front().headers.get("authorization"), "Bearer mine");
  EXPECT_EQ(second.received().front().body, "") << "a question without the request's body";
  EXPECT_EQ(metric("smg_worker_selections_total", {"reason=\"keeps_response\""}), 10);
  // One that nobody knows, or that is no id, is for whoever is chosen to refuse.
  const size_t before = first.received().size() + second.received().size();
  for (const char* id : {"resp_3", "resp_/../x"}) EXPECT_THAT(go_on(id), HasSubstr("resp_"));
  EXPECT_EQ(first.received().size() + second.received().size(), before + 2 + 1 + 1);
  EXPECT_EQ(metric("smg_worker_selections_total"), 12) << "questions are no work";
  expect_settled();
}

TEST_F(RoutesTest, WithOneWorkerNobodyIsAskedWhoKeepsAResponse) {
  ScriptedWorker& only = scripted([](const Received&) { return net::Response::json(200, "{}"); });
  start_all();
  ++sent_;
  ASSERT_EQ(call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})")->status, 200);
  ASSERT_EQ(only.received().size(), 1U);
  EXPECT_EQ(only.received()[0].method, "POST");
  expect_settled();
}

// The rate that the index predicts knows nothing of them, and an alert compares the two.
TEST_F(RoutesTest, TheReportedHitRateLeavesOutConversations) {
  ScriptedWorker& only = scripted([](const Received&) {
    return net::Response::json(
        200, R"({"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":80},"output_tokens":1}})");
  });
  start_all();
  const auto rate = [this] { return metric("sglang_cache_hit_rate", {"source=\"reported\""}); };
  sent_ += 2;
  ASSERT_EQ(call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})")->status, 200);
  EXPECT_EQ(rate(), 0) << "no series";
  ASSERT_EQ(call("POST", "/v1/responses", R"({"input":"x"})")->status, 200);
  EXPECT_EQ(rate(), 0.8);
  EXPECT_EQ(metric("smg_worker_cached_tokens_total", {only.url()}), 160) << "of both";
  expect_settled();
}

TEST_F(RoutesTest, WhatIsSaidToAConversationIsNoPrefix) {
  const auto keeps = [](const Received&) { return net::Response::json(200, "{}"); };
  scripted(keeps);
  scripted([](const Received& received) { return net::Response::json(received.method == "GET" ? 404 : 200, "{}"); });
  start_all({"--policy", "cache_aware"});
  const std::string input(500, 'x');
  const auto send = [&](Json body) {
    ++sent_;
    body["input"] = input;
    ASSERT_EQ(call("POST", "/v1/responses", body.dump())->status, 200);
  };
  const double nodes = metric("smg_prefix_index_nodes");
  send({{"previous_response_id", "resp_1"}});
  EXPECT_EQ(metric("smg_worker_selections_total", {"reason=\"keeps_response\""}), 1);
  EXPECT_EQ(metric("smg_cache_aware_match_ratio_count"), 0) << "the policy was not asked";
  // The same text at the head of a prompt was never sent.
  send(Json::object());
  EXPECT_EQ(metric("smg_cache_aware_match_ratio_count"), 1);
  EXPECT_EQ(metric("smg_cache_aware_match_ratio_sum"), 0);
  EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") == nodes + 1; })) << "that of the second";
  expect_settled();
}

TEST_F(RoutesTest, AKeeperThatLeavesMeanwhileIsMissed) {
  std::string keeper;
  const auto keeps = [&](const Received& received) {
    // Between the question and the request.
    if (received.method == "GET") gateway_->worker_ended(keeper);
    return net::Response::json(200, "{}");
  };
  keeper = scripted(keeps).url();
  for (int i = 0; i < 2; ++i) {
    scripted([](const Received& received) { return net::Response::json(received.method == "GET" ? 404 : 200, "{}"); });
  }
  start_all({"--disable-retries"});
  ++sent_;
  const auto answer = call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})");
  EXPECT_EQ(answer->status, 503);
  EXPECT_EQ(code_of(answer), "no_available_workers");
  EXPECT_GE(std::stoi(std::string(answer->headers.get("retry-after").value_or("0"))), 1);
  EXPECT_THAT(answer->body, HasSubstr("which keeps the response resp_1, cannot take the request now"));
  expect_settled();
}

TEST_F(RoutesTest, WithoutTheWorkerThatKeepsAResponseNobodyElseIsAsked) {
  std::atomic<bool> broken = false;
  const auto keeps = [&](const Received& received) {
    if (received.method == "GET") return net::Response::json(200, "{}");
    return broken ? net::Response::json(500, R"({"error":"mine"})") : net::Response::json(200, "{}");
  };
  scripted(keeps);
  ScriptedWorker& other = scripted(
      [](const Received& received) { return net::Response::json(received.method == "GET" ? 404 : 200, "{}"); });
  start_all({"--disable-retries"});
  broken = true;
  for (int i = 0; i < 3; ++i) {
    ++sent_;
    const auto answer = call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})");
    EXPECT_EQ(answer->status, 500);
  }
  for (const Received& one : other.received()) EXPECT_EQ(one.method, "GET");
  expect_settled();
}

TEST_F(RoutesTest, WhereAWorkerCannotBeAskedNobodySaysThatAResponseIsNotThere) {
  std::atomic<int> status = 503;
  ScriptedWorker& other = scripted([](const Received&) { return net::Response::json(404, R"({"error":"never"})"); });
  scripted([&](const Received& received) {
    return net::Response::json(received.method == "GET" ? status.load() : 200, R"({"id":"mine"})");
  });
  SimWorker& dead = worker();
  start_all();
  const auto go_on = [&] {
    ++sent_;
    return call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})");
  };
  const auto expect_unknown = [&](const char* why) {
    const auto answer = go_on();
    EXPECT_EQ(answer->status, 503) << why << answer->body;
    EXPECT_EQ(code_of(answer), "no_available_workers") << why;
    EXPECT_GE(std::stoi(std::string(answer->headers.get("retry-after").value_or("0"))), 1) << why;
    EXPECT_THAT(answer->body, HasSubstr("resp_1")) << why;
  };
  expect_unknown("one is up and cannot say");
  dead.stop();
  status = 404;
  expect_unknown("one takes no connection");
  status = 200;
  EXPECT_EQ(go_on()->status, 200) << "where one has it the others do not matter";
  for (const Received& one : other.received()) EXPECT_EQ(one.method, "GET");
  expect_settled();
}

TEST_F(RoutesTest, TheKeeperIsAskedAgainThoughOthersAreFree) {
  int posts = 0;  // on the loop of all workers
  const auto keeps = [&](net::ServerExchange& exchange, const Received& received) -> net::Task<> {
    if (received.method == "POST") ++posts;
    // Full once; then it breaks off, on a kept connection twice: that alone is not held against a worker.
    if (received.method == "POST" && (posts == 2 || posts == 3)) {
      exchange.abort();
      co_return;
    }
    auto answer = net::Response::json(posts == 1 ? 503 : 200, posts == 1 ? R"({"error":"queue full"})" : "{}");
    co_await exchange.respond(std::move(answer));
  };
  scripted_.push_back(std::make_unique<ScriptedWorker>(loops_, ScriptedWorker::Serve(keeps)));
  std::vector<ScriptedWorker*> others;
  for (int i = 0; i < 2; ++i) {
    others.push_back(&scripted(
        [](const Received& received) { return net::Response::json(received.method == "GET" ? 404 : 200, "{}"); }));
  }
  start_all({"--retry-initial-backoff-ms", "1", "--retry-max-backoff-ms", "1"});
  ++sent_;
  const auto answer = call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})");
  EXPECT_EQ(answer->status, 200) << answer->body;
  for (const ScriptedWorker* other : others) {
    for (const Received& one : other->received()) EXPECT_EQ(one.method, "GET");
  }
  expect_settled();
}

TEST_F(RoutesTest, WhoKeepsAResponseIsAskedNoLongerThanSomebodyWaits) {
  silent();
  silent();
  start_all();
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/v1/responses", R"({"input":"x","previous_response_id":"resp_1"})");
  const auto busy = [&] { return metric("smg_upstream_connections", {"state=\"busy\""}); };
  ASSERT_TRUE(eventually([&] { return busy() == 2; }));
  client.leave();
  // Before the 3 s of the questions are over.
  bool ended = false;
  for (int i = 0; i < 400 && !ended; ++i) {
    ended = busy() == 0;
    timespec moment{0, 5'000'000};
    nanosleep(&moment, nullptr);
  }
  EXPECT_TRUE(ended);
  EXPECT_EQ(metric("smg_worker_selections_total"), 0);
  expect_settled();
}

TEST_F(RoutesTest, AWorkerThatIsSilentIsNotWaitedForLong) {
  scripted([](const Received&) { return net::Response::json(404, "{}"); });
  silent();
  start_all();
  ++sent_;
  const net::ClientTimeouts within{.head = std::chrono::seconds(20)};
  const auto answer = call("POST", "/v1/responses", R"({"input":"x","previous_response_id":"gone"})", {}, within);
  EXPECT_EQ(code_of(answer), "no_available_workers");
  expect_settled();
}

TEST_F(RoutesTest, ThatNobodyHasAResponseIsKnownWhenAllHaveSaidSo) {
  start();
  EXPECT_EQ(code_of(call("GET", "/v1/responses/r")), "no_workers");
  const auto knows_not = [](const Received&) { return net::Response::json(404, R"({"error":"no"})"); };
  ScriptedWorker& one = scripted(knows_not);
  SimWorker& dead = worker();
  gateway_->worker_started(one.url());
  const auto unknown = call("GET", "/v1/responses/r");
  EXPECT_EQ(unknown->status, 404);
  EXPECT_EQ(unknown->body, R"({"error":"no"})");
  gateway_->worker_started(dead.url());
  dead.stop();
  for (const auto& [method, path] : {std::pair{"GET", "/v1/responses/r"}, {"POST", "/v1/responses/r/cancel"}}) {
    const auto answer = call(method, path);
    EXPECT_EQ(answer->status, 503) << path;
    EXPECT_EQ(code_of(answer), "no_available_workers") << path;
    EXPECT_GE(std::stoi(std::string(answer->headers.get("retry-after").value_or("0"))), 1) << path;
    EXPECT_THAT(answer->body, HasSubstr("no worker says that it keeps the response r, and worker")) << path;
  }
}

TEST_F(RoutesTest, WhatTheKeeperSaysOfAResponseComesBeforeThatOthersDoNotHaveIt) {
  std::atomic<int> keeper = 0;  // is first, between the others, and last
  const auto says = [&](int number) {
    return [&, number](const Received&) {
      return number == keeper ? net::Response::json(400, R"({"error":"it has ended"})")
                              : net::Response::json(404, R"({"error":"no"})");
    };
  };
  for (int number = 0; number < 3; ++number) scripted(says(number));
  start_all({"--rl-fanout-concurrency", "1"});
  for (; keeper < 3; ++keeper) {
    const auto answer = call("POST", "/v1/responses/r/cancel");
    EXPECT_EQ(answer->status, 400) << keeper;
    EXPECT_EQ(answer->body, R"({"error":"it has ended"})") << keeper;
  }
  for (const auto& one : scripted_) EXPECT_EQ(one->received().size(), 3U);
}

TEST_F(RoutesTest, WhatIsNotBuiltSaysSo) {
  worker();
  start();
  for (const auto& [method, path] : {std::pair{"DELETE", "/v1/responses/r"},
                                     {"GET", "/v1/responses/r/input_items"},
                                     {"POST", "/v1/conversations"},
                                     {"GET", "/v1/conversations/c/items"},
                                     {"POST", "/v1/audio/transcriptions"},
                                     {"GET", "/v1/realtime"},
                                     {"POST", "/v1/interactions"},
                                     {"POST", "/parse/reasoning"},
                                     {"GET", "/wasm"},
                                     {"GET", "/v1/tokenizers/t"}}) {
    const auto answer = call(method, path);
    EXPECT_EQ(answer->status, 501) << path;
    EXPECT_EQ(code_of(answer), "not_implemented") << path;
    if (std::string_view(path).starts_with("/v1/responses/")) {
      EXPECT_THAT(answer->body, HasSubstr(fmt::format("{} {} is not passed on", method, path)));
    }
  }
  for (const char* path : {"/ha/health", "/open_session", "/close_session", "/get_weights_by_name", "/v1/responses/",
                           "/v1/responses/r/other", "/v1/responses//cancel"}) {
    EXPECT_EQ(code_of(call("POST", path)), "unknown_url") << path;
  }
  for (const auto& [method, path, allowed] :
       {std::tuple{"POST", "/v1/responses/r", "GET, DELETE"}, {"GET", "/v1/responses/r/cancel", "POST"}}) {
    const auto answer = call(method, path);
    EXPECT_EQ(answer->status, 405) << path;
    EXPECT_EQ(answer->headers.get("allow"), allowed);
  }
}

// --- control verbs -------------------------------------------------------------------------------------------------

TEST_F(RoutesTest, ControlVerbsReachEveryWorkerWithTheirBody) {
  ScriptedWorker& one = scripted([](const Received&) { return ok(); });
  ScriptedWorker& two = scripted([](const Received&) { return ok(); });
  start_all({"--rl-fanout-concurrency", "1"});
  const char* verbs[] = {"/pause_generation",
                         "/continue_generation",
                         "/update_weights_from_disk",
                         "/update_weights_from_tensor",
                         "/update_weights_from_distributed",
                         "/update_weights_from_ipc",
                         "/init_weights_update_group",
                         "/destroy_weights_update_group",
                         "/update_weight_version",
                         "/release_memory_occupation",
                         "/resume_memory_occupation",
                         "/set_internal_state",
                         "/load_lora_adapter",
                         "/unload_lora_adapter"};
  for (const std::string verb : verbs) {
    const std::string body = Json{{"verb", verb}}.dump();
    const auto answer = call("POST", verb + "?q=1", body);
    ASSERT_EQ(answer->status, 200) << verb;
    const auto document = Json::parse(answer->body);
    EXPECT_EQ(document["status"], "success");
    EXPECT_EQ(document["workers_done"], 2);
    EXPECT_EQ(document["total_workers"], 2);
    EXPECT_EQ(document["successful"].size(), 2u);
    for (const ScriptedWorker* worker : {&one, &two}) {
      const auto got = worker->received().back();
      EXPECT_EQ(got.target, verb + "?q=1");
      EXPECT_EQ(got.body, body);
      EXPECT_EQ(got.headers.get("content-type"), "application/json");
    }
  }
}

TEST_F(RoutesTest, AControlVerbThatSomeRefuseOrNeverAnswerIsBounded) {
  const auto refuses = [](const Received&) { return net::Response::json(400, R"({"message":"no such path"})"); };
  ScriptedWorker& one = scripted(refuses);
  ScriptedWorker& hangs = silent();
  ScriptedWorker& good = scripted([](const Received&) { return ok(); });
  start_all({"--rl-control-timeout-secs", "1"});
  const auto answer = call("POST", "/update_weights_from_disk", R"({"model_path":"x"})");
  EXPECT_EQ(answer->status, 206);
  const auto document = Json::parse(answer->body);
  EXPECT_EQ(document["status"], "partial_success");
  EXPECT_EQ(document["successful"], Json::array({good.url()}));
  ASSERT_EQ(document["failed"].size(), 2u);
  std::map<std::string, std::string> failed;
  for (const auto& entry : document["failed"]) failed[entry["worker"]] = entry["error"];
  EXPECT_THAT(failed[one.url()], HasSubstr("status 400: {\"message\":\"no such path\"}"));
  EXPECT_THAT(failed[hangs.url()], HasSubstr("within 1 s"));
}

TEST_F(RoutesTest, AControlVerbThatAllRefuseIsTheirRefusal) {
  const std::string words = R"({"object":"error","message":"mode must be abort","code":400})";
  std::atomic<int> one_says = 400, two_says = 400;
  std::atomic<bool> alike = true;
  ScriptedWorker& one = scripted([&](const Received&) { return net::Response::json(one_says, words); });
  scripted([&](const Received&) {
    return net::Response::json(two_says, alike ? words : R"({"error":{"message":"another reason"}})");
  });
  start_all();
  const auto paused = [&] { return call("POST", "/pause_generation", R"({"mode":"foo"})"); };
  const auto refused = paused();
  EXPECT_EQ(refused->status, 400);
  EXPECT_EQ(code_of(refused), "workers_failed");
  const auto document = Json::parse(refused->body);
  EXPECT_EQ(document["error"]["message"], "none of 2 workers did it: mode must be abort");
  EXPECT_EQ(document["error"]["code"], "workers_failed");
  EXPECT_EQ(document["status"], "failed");
  EXPECT_EQ(document["workers_done"], 0);
  EXPECT_EQ(document["failed"].size(), 2u);

  alike = false;
  EXPECT_EQ(Json::parse(paused()->body)["message"], "none of 2 workers did it; \"failed\" says why");
  two_says = 500;
  EXPECT_EQ(paused()->status, 502) << "they do not agree";
  one_says = 500;
  EXPECT_EQ(paused()->status, 500);
  one_says = two_says = 302;
  EXPECT_EQ(paused()->status, 502) << "that is no answer to such a question";
  one_says = 200;
  EXPECT_EQ(paused()->status, 206);
  EXPECT_EQ(one.received().size(), 6u);
}

TEST_F(RoutesTest, AControlVerbThatNobodyAnswersIs502) {
  worker();
  start();
  workers_[0]->stop();
  for (const char* verb : {"/flush_cache", "/start_profile", "/continue_generation"}) {
    const auto answer = call("POST", verb);
    EXPECT_EQ(answer->status, 502) << verb;
    EXPECT_EQ(code_of(answer), "no_worker_response") << verb;
    EXPECT_EQ(Json::parse(answer->body)["failed"].size(), 1u);
  }
}

TEST_F(RoutesTest, WithoutWorkersThereIsNobodyToControl) {
  start();
  const auto flushed = call("POST", "/flush_cache");
  EXPECT_EQ(flushed->status, 200) << "no cache holds anything";
  EXPECT_EQ(Json::parse(flushed->body)["total_workers"], 0);
  EXPECT_EQ(call("POST", "/start_profile")->status, 404);
  for (const char* verb : {"/pause_generation", "/continue_generation", "/update_weight_version"}) {
    const auto answer = call("POST", verb, "{}");
    EXPECT_EQ(answer->status, 503) << verb;
    EXPECT_EQ(code_of(answer), "no_workers") << verb;
  }
}

TEST_F(RoutesTest, BodiesOfControlVerbsMayBeAsLargeAsRequests) {
  ScriptedWorker& one = scripted([](const Received&) { return ok(); });
  start_all({"--max-payload-size", "3000000"});
  EXPECT_EQ(call("POST", "/update_weights_from_tensor", std::string(2'500'000, 'x'))->status, 200);
  EXPECT_EQ(one.received().back().body.size(), 2'500'000u);
  EXPECT_EQ(code_of(call("POST", "/update_weights_from_tensor", std::string(3'500'000, 'x'))),
            "request_body_too_large");
  EXPECT_EQ(code_of(call("POST", "/flush_cache", std::string(1'500'000, 'x'))), "request_body_too_large");
}

TEST_F(RoutesTest, NewWeightsEmptyTheBeliefAboutCaches) {
  scripted([](const Received&) { return ok(); });
  start_all();
  const auto generation = [&] { return workers_json()[0]["generation"].get<int>(); };
  const int before = generation();
  EXPECT_EQ(call("POST", "/pause_generation")->status, 200);
  EXPECT_EQ(generation(), before);
  EXPECT_EQ(call("POST", "/update_weights_from_disk", "{}")->status, 200);
  EXPECT_EQ(generation(), before + 1);
}

TEST_F(RoutesTest, AnAbortNamesItsRequest) {
  SimWorker& one = worker();
  start();
  for (const char* body : {"", "{}", R"({"rid":""})", R"({"rid":[]})", R"({"rid":["a",""]})", R"({"rid":7})",
                           R"({"rid":null,"abort_all":false})", "[]"}) {
    EXPECT_EQ(call("POST", "/abort_request", body)->status, 400) << body;
  }
  EXPECT_TRUE(one.received().empty() || last_post(one).target != "/abort_request");
  for (const char* body : {R"({"rid":"a"})", R"({"rid":["a","b"]})", R"({"rid":"","abort_all":true})"}) {
    EXPECT_EQ(call("POST", "/abort_request", body)->status, 200) << body;
    EXPECT_EQ(last_post(one).body, body);
  }
}

TEST_F(RoutesTest, AnAbortReachesARequestThatIsUnderWay) {
  SimWorker& one = worker({.manual = true});
  start();
  RawClient client(gateway_->port());
  client.post("/generate", R"({"text":"x","rid":"mine","sampling_params":{"max_new_tokens":4}})");
  ASSERT_TRUE(eventually([&] { return one.active() == 1; }));
  ASSERT_EQ(call("POST", "/abort_request", R"({"rid":"mine"})")->status, 200);
  EXPECT_TRUE(eventually([&] { return one.active() == 0; }));
  EXPECT_EQ(one.counters().aborted, 1);
}

// --- metrics of the engines ----------------------------------------------------------------------------------------

TEST_F(RoutesTest, TheMetricsOfAllEnginesAreOneDocument) {
  SimWorker& one = worker({.model = "a:b"});
  SimWorker& two = worker();
  start();
  const auto answer = call("GET", "/engine_metrics");
  ASSERT_EQ(answer->status, 200);
  EXPECT_THAT(std::string(answer->headers.get("content-type").value_or("")), HasSubstr("version=0.0.4"));
  const std::string& text = answer->body;
  EXPECT_THAT(text, HasSubstr(fmt::format("\nsglang_num_running_reqs{{model_name=\"a:b\",worker_addr=\"{}\"}} 0\n"
                                          "sglang_num_running_reqs{{model_name=\"sim-model\",worker_addr=\"{}\"}} 0\n",
                                          one.url(), two.url())));
  EXPECT_EQ(text.find("# TYPE sglang_token_usage gauge"), text.rfind("# TYPE sglang_token_usage gauge"));
  EXPECT_THAT(text, Not(HasSubstr("sglang:")));
}

TEST_F(RoutesTest, MetricsOfNobodyAreAnError) {
  start();
  const auto nobody = call("GET", "/engine_metrics");
  EXPECT_EQ(nobody->status, 503);
  EXPECT_EQ(Json::parse(nobody->body)["error"]["code"], "no_workers");
  SimWorker& dead = worker();
  gateway_->worker_started(dead.url());
  dead.stop();
  const auto failed = call("GET", "/engine_metrics");
  EXPECT_EQ(failed->status, 500);
  EXPECT_THAT(failed->body, HasSubstr("All backend requests failed: 1 of 1 workers gave no answer to GET /metrics"));
  EXPECT_THAT(failed->body, Not(HasSubstr("--enable-metrics")));
  ScriptedWorker& without = scripted([](const Received&) { return net::Response::text(404, "Not Found"); });
  gateway_->worker_started(without.url());
  const auto hint = call("GET", "/engine_metrics");
  EXPECT_EQ(hint->status, 500);
  EXPECT_THAT(hint->body,
              HasSubstr("1 of 2 workers gave no answer to GET /metrics, 1 of 2 workers answered GET /metrics "
                        "with 404; engines have metrics when they are started with --enable-metrics"));
}

// --- bodies that mean harm -----------------------------------------------------------------------------------------

TEST_F(RoutesTest, DeepNestingIsBoundedWhereverItIsRead) {
  ScriptedWorker& one = scripted([](const Received&) { return ok(); });
  start_all();
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  // The scanner skips it and the engine judges it; the other readers refuse it.
  const std::string request = fmt::format(R"({{"text":"x","other":{}}})", nested(10'000));
  EXPECT_EQ(call("POST", "/generate", request)->status, 200);
  EXPECT_EQ(one.received().back().body, request);
  const std::string rerank = fmt::format(R"({{"query":"x","documents":{}}})", nested(10'000));
  EXPECT_EQ(call("POST", "/rerank", rerank)->status, 400);
  const std::string worker = fmt::format(R"({{"url":"http://h:1","labels":{{"a":{}}}}})", nested(400'000));
  EXPECT_EQ(call("POST", "/workers", worker)->status, 400);
  const std::string id = workers_json()[0]["id"].get<std::string>();
  EXPECT_EQ(call("PATCH", "/workers/" + id, fmt::format(R"({{"labels":{{"a":{}}}}})", nested(400'000)))->status, 400);
  EXPECT_EQ(call("GET", "/health")->status, 200);
}

}  // namespace
}  // namespace sluice::gateway
