// Where requests go under the policies that read more than the prompt, over real sockets.
#include <numeric>
#include <set>

#include "gateway/gateway_fixture.h"

namespace sluice::gateway {
namespace {

class RoutingTest : public GatewayFixture {
 protected:
  // The worker that answered, by its place in workers_; -1 = none did.
  int answered_by(net::Headers headers, const std::string& text = "x") {
    ++sent_;
    last_ = call("POST", "/generate", body_of(text), std::move(headers)).value();
    const auto url = last_.headers.get("x-smg-routed-worker-id");
    for (size_t i = 0; url && i < workers_.size(); ++i) {
      if (workers_[i]->url() == *url) return static_cast<int>(i);
    }
    return -1;
  }
  static net::Headers header(std::string name, std::string value) {
    net::Headers headers;
    headers.add(std::move(name), std::move(value));
    return headers;
  }
  void three_workers() {
    for (int i = 0; i < 3; ++i) worker();
  }

  net::Response last_;
};

TEST_F(RoutingTest, AManualKeyStaysWhereItIsAndMovesOnlyWhenItMust) {
  three_workers();
  start({"--policy", "manual", "--assignment-mode", "min_group"});
  std::set<int> used;
  for (const char* key : {"a", "b", "c"}) {
    const int first = answered_by(header("X-SMG-Routing-Key", key));
    used.insert(first);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(answered_by(header("x-smg-routing-key", key)), first);
  }
  EXPECT_EQ(used.size(), 3u) << "min_group gives each worker one key";
  EXPECT_EQ(metric("smg_manual_policy_cache_entries"), 3);
  EXPECT_EQ(metric("smg_worker_routing_keys_active", {workers_[0]->url()}), 1);

  const int home = answered_by(header("X-SMG-Routing-Key", "a"));
  const uint16_t port = workers_[static_cast<size_t>(home)]->port();
  workers_[static_cast<size_t>(home)]->stop();
  const int other = answered_by(header("X-SMG-Routing-Key", "a"));
  EXPECT_EQ(last_.status, 200);
  EXPECT_NE(other, home);
  ASSERT_TRUE(workers_[static_cast<size_t>(home)]->restart().ok());
  EXPECT_EQ(workers_[static_cast<size_t>(home)]->port(), port);
  expect_settled();
}

TEST_F(RoutingTest, ConsistentHashingGoesByKeyIdentityAndTarget) {
  three_workers();
  start({"--policy", "consistent_hashing", "--routing-key-headers", "X-Session", "X-SMG-Routing-Key"});
  for (int session = 0; session < 10; ++session) {
    const std::string key = std::to_string(session);
    const int first = answered_by(header("X-Session", key));
    EXPECT_EQ(answered_by(header("X-Session", key)), first);
    EXPECT_EQ(answered_by(header("X-SMG-Routing-Key", key)), first) << "the same key by its other name";
    EXPECT_EQ(answered_by(header("Authorization", key)), first);
  }
  for (int target = 0; target < 3; ++target) {
    EXPECT_EQ(answered_by(header("X-SMG-Target-Worker", std::to_string(target))), target);
  }
  EXPECT_EQ(answered_by(header("X-SMG-Target-Worker", "-1")), -1);
  EXPECT_EQ(last_.status, 400);
  EXPECT_NE(last_.body.find("X-SMG-Target-Worker"), std::string::npos) << last_.body;
  expect_settled();
}

TEST_F(RoutingTest, ATargetIsThatWorkerAlsoWhereItIsBusyOrHasJustFailed) {
  three_workers();
  start({"--policy", "consistent_hashing", "--retry-initial-backoff-ms", "1", "--retry-max-retries", "2"});
  const auto target = [](int place) { return header("X-SMG-Target-Worker", std::to_string(place)); };
  workers_[0]->set_fault({.kind = Kind::kStatus, .status = 429, .times = 1});
  workers_[1]->set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  for (int place : {0, 1}) EXPECT_EQ(answered_by(target(place)), place) << "it was asked again";
  EXPECT_EQ(metric("smg_worker_retries_total"), 2);
  // The clock stands still, and with it the time for which the first one is left alone.
  for (int place = 0; place < 3; ++place) EXPECT_EQ(answered_by(target(place)), place);
  gateway_->worker_ended(workers_[0]->url());
  EXPECT_EQ(answered_by(target(0)), 1) << "the first of those that may be used";
  EXPECT_EQ(answered_by(target(1)), 2);
  expect_settled();
}

TEST_F(RoutingTest, ATargetThatIsNotThereIsNoWorker) {
  three_workers();
  start({"--policy", "consistent_hashing", "--retry-max-retries", "1"});
  EXPECT_EQ(answered_by(header("X-SMG-Target-Worker", "3")), -1);
  EXPECT_EQ(last_.status, 503);
  EXPECT_EQ(last_.headers.get("X-SMG-Error-Code"), "no_available_workers");
  expect_settled();
}

TEST_F(RoutingTest, PrefixHashSendsWhatBeginsAlikeToOneWorker) {
  three_workers();
  start({"--policy", "prefix_hash", "--prefix-token-count", "4"});
  std::set<int> used;
  // Where workers lie on the ring depends on their ports: each gets some of so many groups.
  for (int group = 0; group < 100; ++group) {
    const std::string beginning = std::to_string(group) + " is the group of this";
    const int first = answered_by({}, beginning + " one");
    EXPECT_EQ(answered_by({}, beginning + " other one"), first);
    used.insert(first);
  }
  EXPECT_EQ(used.size(), 3u);
  expect_settled();
}

TEST_F(RoutingTest, ARoutingKeySticksUnderAnyPolicyWhereThatIsAskedFor) {
  three_workers();
  start({"--policy", "round_robin", "--routing-key-override"});
  const int home = answered_by(header("X-SMG-Routing-Key", "a"));
  std::set<int> others;
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(answered_by(header("X-SMG-Routing-Key", "a")), home);
    others.insert(answered_by({}));
  }
  EXPECT_EQ(others.size(), 3u) << "requests without a key go round";
  expect_settled();
}

TEST_F(RoutingTest, PassthroughStaysWithTheFirstUsableWorker) {
  three_workers();
  start({"--policy", "passthrough"});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(answered_by({}), 0);
  workers_[0]->stop();
  EXPECT_EQ(answered_by({}), 1);
  expect_settled();
}

TEST_F(RoutingTest, LeastLoadAvoidsTheWorkerWhoseEngineSaysThatItIsFull) {
  SimWorkerOptions small;
  small.engine.kv_tokens = 131072;
  SimWorker& full = worker(small);
  SimWorker& free = worker();
  time_ = &real_clock();
  start({"--policy", "least_load", "--load-monitor-interval", "1"});
  // What fills the pool of the first worker did not come through here.
  RawClient direct(full.port());
  direct.post("/generate", body_of("a long story", true, 125'000));
  ASSERT_TRUE(eventually([&] { return full.load().token_usage > 0.9; }));
  ASSERT_TRUE(eventually([&] { return full.counters().load_reads > 1; }));
  const int64_t reads = full.counters().load_reads;
  ASSERT_TRUE(eventually([&] { return full.counters().load_reads > reads; }));
  const int64_t before = free.counters().generations;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(answered_by({}), 1);
  EXPECT_EQ(free.counters().generations, before + 4);
  direct.leave();
  expect_settled();
}

TEST_F(RoutingTest, MinCostFindsThePrefixAndSaysWhetherTheWorkerConfirmsIt) {
  three_workers();
  start({"--policy", "min_cost"});
  std::string prompt;
  for (int i = 0; i < 200; ++i) prompt += fmt::format("word{} ", i);
  const int home = answered_by({}, prompt + "first");
  const auto belief = [&] { return workers_json()[static_cast<size_t>(home)]["cache_belief"]; };
  EXPECT_EQ(belief()["source"], "predicted");
  EXPECT_EQ(metric("smg_worker_cache_reported"), 0);
  for (const char* question : {"second", "third", "fourth"}) {
    // The index takes a claim a moment later.
    ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > 1; }));
    EXPECT_EQ(answered_by({}, prompt + question), home);
  }
  EXPECT_EQ(belief()["source"], "reported") << belief();
  EXPECT_EQ(metric("smg_worker_cache_reported"), 1);
  EXPECT_GT(belief()["share"].get<double>(), 0.9);
  expect_settled();
}

// Every worker is idle and nobody holds the prompt: what was placed a moment ago must count at once.
TEST_F(RoutingTest, ABurstOfEqualColdPromptsDoesNotScatter) {
  // No answer comes before all have been sent, or the gateway would learn in between how fast the workers are.
  for (int i = 0; i < 3; ++i) worker({.manual = true});
  start({"--policy", "min_cost"});
  const std::string body = body_of(std::string(8000, 'c'));
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 64; ++i) {
    clients.push_back(std::make_unique<RawClient>(gateway_->port()));
    clients.back()->post("/generate", body);
    ++sent_;
  }
  std::vector<int64_t> counts;
  ASSERT_TRUE(eventually([&] {
    counts.clear();
    for (const auto& worker : workers_) counts.push_back(worker->counters().generations);
    return std::accumulate(counts.begin(), counts.end(), int64_t{0}) == 64;
  }));
  EXPECT_EQ(std::ranges::max(counts), 64) << counts[0] << " " << counts[1] << " " << counts[2];
  EXPECT_TRUE(eventually([&] {
    return std::ranges::count_if(workers_, [](const auto& worker) { return worker->step(), worker->active() > 0; }) ==
           0;
  }));
  for (auto& client : clients) EXPECT_NE(client->read_until("meta_info").find("200 OK"), std::string::npos);
  expect_settled();
}

}  // namespace
}  // namespace sluice::gateway
