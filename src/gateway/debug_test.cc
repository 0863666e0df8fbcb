#include <set>

#include "gateway/gateway_fixture.h"
#include "gateway/mailbox.h"
#include "gateway/selection.h"

namespace sluice::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class DebugTest : public GatewayFixture {
 protected:
  Json debug(const std::string& path) {
    const auto answer = call("GET", "/debug/" + path);
    EXPECT_EQ(answer->status, 200) << path << " " << answer->body;
    return Json::parse(answer->body);
  }
  Json why(const std::string& id) {
    Json record;
    EXPECT_TRUE(eventually([&] {
      const auto answer = call("GET", "/debug/why/" + id);
      if (answer->status == 200) record = Json::parse(answer->body);
      return answer->status == 200;
    }));
    return record;
  }
  Result<net::Response> named(const std::string& id, const std::string& text, bool stream = false) {
    ++sent_;
    return call("POST", "/generate", body_of(text, stream), {{"x-request-id", id}});
  }
};

TEST_F(DebugTest, WhyShowsTheTriesWithTheScoresOfThoseThatWereCompared) {
  worker();
  worker();
  start({"--policy", "power_of_two"});
  for (auto& each : workers_) each->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  ASSERT_EQ(named("mine", "the prompt")->status, 200);
  const Json record = why("mine");
  EXPECT_EQ(record["attempts"], 3);
  EXPECT_EQ(record["outcome"], "ok");
  ASSERT_EQ(record["tries"].size(), 3u);
  const std::set<std::string> urls{workers_[0]->url(), workers_[1]->url()};
  for (const Json& made : record["tries"]) {
    EXPECT_TRUE(urls.contains(made["worker"])) << made;
    EXPECT_EQ(made["policy"], "power_of_two");
    EXPECT_FALSE(made["reason"].get<std::string>().empty());
  }
  const Json& first = record["tries"][0];
  EXPECT_EQ(first["status"], 500);
  EXPECT_TRUE(first.contains("failed_at"));
  EXPECT_FALSE(record["tries"][2].contains("failed_at"));
  ASSERT_EQ(first["scores"].size(), 2u);
  std::set<std::string> scored;
  int chosen = 0;
  for (const Json& score : first["scores"]) {
    scored.insert(score["worker"]);
    chosen += score["chosen"] == true && score["worker"] == first["worker"] ? 1 : 0;
  }
  EXPECT_EQ(scored, urls);
  EXPECT_EQ(chosen, 1);
  EXPECT_EQ(record["prompt"]["bytes"], std::string("the prompt").size());
  EXPECT_EQ(record["tokens"]["output"], 4);
  EXPECT_GT(record["answer_bytes"], 0);
  EXPECT_THAT(record.dump(), Not(HasSubstr("the prompt")));
  expect_settled();
}

TEST_F(DebugTest, WhyShowsTheScoresOfEveryWorker) {
  for (int i = 0; i < 6; ++i) worker();
  for (const char* policy : {"min_cost", "cache_aware", "least_load", "power_of_two", "round_robin"}) {
    SCOPED_TRACE(policy);
    start({"--policy", policy});
    ASSERT_EQ(named("first", std::string(400, 'x'))->status, 200);
    workers_[0]->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
    ASSERT_EQ(named("second", std::string(400, 'x'))->status, 200);
    for (const char* id : {"first", "second"}) {
      const Json record = why(id);
      ASSERT_GE(record["tries"].size(), 1u);
      for (const Json& made : record["tries"]) {
        std::set<std::string> scored;
        const Json* of_chosen = nullptr;
        for (const Json& score : made["scores"]) {
          scored.insert(score["worker"]);
          if (score["chosen"] == true) of_chosen = &score;
        }
        EXPECT_EQ(scored.size(), workers_.size());
        ASSERT_NE(of_chosen, nullptr);
        EXPECT_EQ((*of_chosen)["worker"], made["worker"]);
        EXPECT_EQ((*of_chosen)["usable"], true);
        EXPECT_EQ((*of_chosen)["matched_share"], made["matched_share"]);
      }
    }
    workers_[0]->clear_fault();
  }
}

TEST_F(DebugTest, AWorkerThatMayNotBeUsedIsScoredAndSaidToBeOut) {
  worker();
  worker();
  start({"--policy", "round_robin", "--disable-retries", "--cb-failure-threshold", "1"});
  workers_[0]->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  for (int i = 0; i < 2; ++i) (void)generate();
  ASSERT_EQ(metric("smg_worker_cb_state", {workers_[0]->url()}), 1);
  ASSERT_EQ(named("mine", "x")->status, 200);
  int out = 0;
  const Json record = why("mine");
  for (const Json& score : record["tries"][0]["scores"]) {
    const bool is_out = score["worker"] == workers_[0]->url();
    EXPECT_EQ(score["usable"], !is_out);
    EXPECT_EQ(score["why_not"], is_out ? Json("breaker_open") : Json());
    out += is_out ? 1 : 0;
  }
  EXPECT_EQ(out, 1) << record.dump(1);
}

TEST_F(DebugTest, OfMoreWorkersThanAreWeighedThoseThatWereComparedAreShown) {
  worker();
  start({"--policy", "power_of_two"});
  for (size_t i = 0; i < kMostWeighed; ++i) {
    gateway_->worker_started(fmt::format("http://127.0.0.1:{}", 1 + i));
  }
  ASSERT_TRUE(eventually([&] { return workers_json().size() == kMostWeighed + 1; }));
  (void)named("mine", "x");
  EXPECT_EQ(why("mine")["tries"][0]["scores"].size(), 2u);
}

TEST_F(DebugTest, EqualPromptsHaveEqualHashes) {
  worker();
  start();
  for (const char* id : {"a", "b"}) ASSERT_EQ(named(id, "the same")->status, 200);
  ASSERT_EQ(named("c", "another one")->status, 200);
  const std::string hash = why("a")["prompt"]["hash"];
  EXPECT_EQ(hash.size(), 16u);
  EXPECT_EQ(why("b")["prompt"]["hash"], hash);
  EXPECT_NE(why("c")["prompt"]["hash"], hash);
}

TEST_F(DebugTest, RequestsShowsThoseThatRunOnEveryLoop) {
  SimWorker& one = worker();
  start({"--runtime-worker-threads", "3"});
  one.set_fault({.kind = Kind::kStall});
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 12; ++i) {
    clients.push_back(std::make_unique<RawClient>(gateway_->port()));
    clients.back()->post("/generate", body_of(fmt::format("prompt {}", i)));
    ++sent_;
  }
  Json live;
  ASSERT_TRUE(eventually([&] {
    if (static_cast<size_t>(one.active()) != clients.size()) return false;
    live = debug("requests?state=live");
    return live["live"].size() == clients.size();
  }));
  EXPECT_EQ(live["live_total"], clients.size());
  EXPECT_FALSE(live.contains("recent"));
  double before = std::numeric_limits<double>::max();
  for (const Json& request : live["live"]) {
    EXPECT_EQ(request["worker"], one.url());
    EXPECT_LE(request["age"].get<double>(), before) << "the oldest first";
    before = request["age"];
  }
  EXPECT_TRUE(eventually([&] {
    live = debug("requests?state=live&count=5");
    return std::ranges::all_of(live["live"], [](const Json& request) {
      return request["doing"] == "waiting for the response head" && request["phases"].contains("sent");
    });
  })) << live;
  EXPECT_EQ(live["live"].size(), 5u);
  EXPECT_EQ(live["live_total"], clients.size());
  EXPECT_THAT(live.dump(), Not(HasSubstr("prompt 1")));
  for (auto& client : clients) client->leave();
  EXPECT_TRUE(eventually([&] { return debug("requests?state=live")["live"].empty(); }));
  one.set_fault({});
  expect_settled();
}

TEST_F(DebugTest, RequestsAreFoundByWorkerAndStatus) {
  worker();
  worker();
  start({"--policy", "round_robin", "--disable-retries"});
  workers_[1]->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  int failed = 0;
  for (int i = 0; i < 6; ++i) failed += generate("x")->status == 500 ? 1 : 0;
  ASSERT_EQ(failed, 1);
  ASSERT_TRUE(eventually([&] { return debug("requests")["recent"].size() == 6u; }));
  const auto count = [&](const std::string& query) { return debug("requests?" + query)["recent"].size(); };
  EXPECT_EQ(count("status=500"), 1u);
  EXPECT_EQ(count("status=5xx"), 1u);
  EXPECT_EQ(count("status=error"), 1u);
  EXPECT_EQ(count("status=200"), 5u);
  EXPECT_EQ(count("status=0"), 0u);
  EXPECT_EQ(count("worker=" + workers_[0]->url()), 3u);
  EXPECT_EQ(count("worker=" + workers_json()[1]["id"].get<std::string>() + "&status=2xx"), 2u);
  EXPECT_EQ(count("worker=nobody"), 0u);
  EXPECT_EQ(count("count=2"), 2u);
  const Json latest = debug("requests?count=6")["recent"];
  for (size_t i = 1; i < latest.size(); ++i) EXPECT_GE(latest[i - 1]["started"], latest[i]["started"]);
  for (const auto& [query, named] :
       std::vector<std::pair<std::string, std::string>>{{"count=0", "count must be a number from 1 to 1000"},
                                                        {"count=1001", "count must be a number from 1 to 1000"},
                                                        {"count=x", "count must be a number from 1 to 1000"},
                                                        {"state=dead", "state must be one of: all, live, recent"},
                                                        {"status=9xx", "status must be"}}) {
    const auto refused = call("GET", "/debug/requests?" + query);
    EXPECT_EQ(refused->status, 400) << query;
    EXPECT_THAT(refused->body, HasSubstr(named));
  }
  expect_settled();
}

TEST_F(DebugTest, IndexShowsItsSizeHoldersAndMostUsedPrefixes) {
  worker();
  worker();
  start({"--policy", "cache_aware", "--prefix-index-bytes", "1048576"});
  const std::string shared(300, 's');
  for (int i = 0; i < 8; ++i) ASSERT_EQ(generate(fmt::format("{} question {}", shared, i))->status, 200);
  ASSERT_EQ(generate("another prompt")->status, 200);
  const Json index = debug("index?top=2");
  EXPECT_EQ(index["budget_bytes"], 1048576);
  EXPECT_GT(index["bytes"], 300);
  EXPECT_GT(index["nodes"], 8);
  EXPECT_EQ(index["inserts"], 9);
  ASSERT_EQ(index["prefixes"].size(), 2u);
  const Json& hot = index["prefixes"][0];
  EXPECT_EQ(hot["inserts"], 8);
  EXPECT_EQ(hot["bytes"], shared.size() + std::string(" question ").size());
  EXPECT_EQ(hot["continuations"], 8);
  EXPECT_EQ(hot["num_holders"], hot["holders"].size());
  size_t bytes = 0;
  for (const Json& one : index["workers"]) bytes += one["bytes"].get<size_t>();
  EXPECT_GT(bytes, shared.size());
  EXPECT_THAT(index.dump(), Not(HasSubstr("sss")));
  EXPECT_EQ(debug("index?top=0")["prefixes"].size(), 0u);
  EXPECT_EQ(call("GET", "/debug/index?top=101")->status, 400);
}

TEST_F(DebugTest, WorkersShowWhatTheirLatestRequestsTook) {
  worker();
  worker();
  start({"--policy", "round_robin"});
  workers_[1]->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  for (int i = 0; i < 10; ++i) ASSERT_EQ(generate("x", /*stream=*/true)->status, 200);
  Json all;
  ASSERT_TRUE(eventually([&] {
    all = debug("workers");
    return all["workers"][0]["attempts"].get<int>() + all["workers"][1]["attempts"].get<int>() == 11;
  }));
  EXPECT_EQ(all["policy"], "round_robin");
  EXPECT_EQ(all["in_flight"], 0);
  const Json &good = all["workers"][0], &bad = all["workers"][1];
  EXPECT_EQ(good["failures"], 0);
  EXPECT_EQ(bad["failures"], 1);
  EXPECT_EQ(good["status"], "ready");
  EXPECT_EQ(good["breaker"], "closed");
  EXPECT_GT(good["tokens"]["prompt"], 0);
  for (const Json& worker : all["workers"]) {
    for (const char* of : {"first_byte", "took"}) {
      EXPECT_LE(worker[of]["p50"], worker[of]["p90"]) << worker;
      EXPECT_LE(worker[of]["p90"], worker[of]["p99"]) << worker;
    }
  }
  expect_settled();
}

TEST_F(DebugTest, IsForThoseWhoMayControl) {
  worker();
  start({"--api-key", "k", "--control-plane-api-keys", "1:me:admin:secret"});
  for (const char* path : {"/debug/requests", "/debug/index", "/debug/workers", "/debug/why/x"}) {
    EXPECT_EQ(call("GET", path)->status, 401) << path;
    EXPECT_EQ(call("GET", path, "", {{"Authorization", "Bearer k"}})->status, 401) << path;
    const auto answer = call("GET", path, "", {{"Authorization", "Bearer secret"}});
    EXPECT_EQ(answer->status, std::string_view(path).ends_with("/x") ? 404 : 200) << path;
  }
}

TEST(MailboxTest, GivesWhatCameWhenTimeIsUp) {
  net::LoopGroup loops(1);
  const std::function<net::Task<std::vector<int>>()> ask = [&]() -> net::Task<std::vector<int>> {
    Mailbox<int> mailbox(loops[0], 2);
    mailbox.slot()(7);
    mailbox.slot();  // never used
    co_return co_await mailbox.collect(std::chrono::milliseconds(20));
  };
  EXPECT_EQ(loops[0].run(ask), std::vector<int>{7});
}

TEST(MailboxTest, WaitsNoLongerThanForTheLastOne) {
  net::LoopGroup loops(2);
  const std::function<net::Task<std::vector<int>>()> ask = [&]() -> net::Task<std::vector<int>> {
    Mailbox<int> mailbox(loops[0], 2);
    for (const int number : {1, 2}) {
      loops[1].post([answer = mailbox.slot(), number] { answer(number); });
    }
    co_return co_await mailbox.collect(std::chrono::hours(1));
  };
  EXPECT_EQ(loops[0].run(ask), (std::vector<int>{1, 2}));
}

}  // namespace
}  // namespace sluice::gateway
