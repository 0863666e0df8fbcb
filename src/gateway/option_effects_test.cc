// What an option changes that can be seen, for the options that no other test is about; docs/results/option-effects.md
// has all of them.
#include <fstream>
#include <set>

#include "gateway/gateway_fixture.h"
#include "gateway/policy/policy_fixture.h"
#include "gateway/retry.h"
#include "gateway/scripted_worker_fixture.h"
#include "testing/raw_listener.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;
using Flags = std::vector<std::string>;

GatewayOptions parsed(const Flags& flags) { return gateway_option_table().parse(flags).value(); }

// --- choices -------------------------------------------------------------------------------------------------------

class PolicyOptionsTest : public ::testing::Test {
 protected:
  Choice choose(const Flags& flags, const RequestFacts& facts = {}) {
    return make_policy(parsed(flags))->choose(fleet_.view(), facts, rng_);
  }
  static RequestFacts held(size_t bytes, size_t total, uint32_t by) {
    RequestFacts facts;
    facts.prefix.matched_bytes = bytes;
    facts.prefix.total_bytes = total;
    facts.prefix.holders[facts.prefix.num_holders++] = by;
    return facts;
  }
  // What the engine of a worker reported at the last poll.
  void reports(size_t worker, int64_t waiting_tokens, double kv_usage, double throughput = 0) {
    WorkerLoad& load = fleet_.load(worker);
    load.polled_tokens = 1;
    load.polled_waiting_tokens = waiting_tokens;
    load.polled_kv_usage = kv_usage;
    load.polled_throughput = throughput;
  }

  TestFleet fleet_;
  Rng rng_{1};
};

TEST_F(PolicyOptionsTest, CacheThreshold) {
  fleet_ = TestFleet({0, 1});
  EXPECT_EQ(choose({}, held(4, 10, 1)).reason, Reason::kPrefixHeld);
  EXPECT_EQ(choose({"--cache-threshold", "0.5"}, held(4, 10, 1)).reason, Reason::kPrefixMiss);
  EXPECT_EQ(choose({"--cache-match-threshold", "0.5"}, held(4, 10, 1)).reason, Reason::kPrefixMiss);
}

TEST_F(PolicyOptionsTest, BalanceAbsThreshold) {
  fleet_ = TestFleet({0, 33});
  EXPECT_EQ(choose({}, held(9, 10, 1)).reason, Reason::kPrefixHeld);
  EXPECT_EQ(choose({"--balance-abs-threshold", "32"}, held(9, 10, 1)).reason, Reason::kImbalanced);
  EXPECT_EQ(choose({"--spill-abs-threshold", "32"}, held(9, 10, 1)).reason, Reason::kImbalanced);
}

TEST_F(PolicyOptionsTest, BalanceRelThreshold) {
  fleet_ = TestFleet({60, 130});
  EXPECT_EQ(choose({}, held(9, 10, 1)).reason, Reason::kImbalanced);
  EXPECT_EQ(choose({"--balance-rel-threshold", "3"}, held(9, 10, 1)).reason, Reason::kPrefixHeld);
  EXPECT_EQ(choose({"--spill-rel-threshold", "3"}, held(9, 10, 1)).reason, Reason::kPrefixHeld);
}

TEST_F(PolicyOptionsTest, BalanceTokenUsageThreshold) {
  fleet_ = TestFleet({0, 0});
  reports(0, 0, 0.2);
  reports(1, 0, 0.8);
  EXPECT_EQ(choose({}, held(9, 10, 1)).reason, Reason::kPrefixHeld);
  EXPECT_EQ(choose({"--balance-token-usage-threshold", "0.5"}, held(9, 10, 1)).reason, Reason::kImbalanced);
}

TEST_F(PolicyOptionsTest, OverloadTokenUsageThreshold) {
  fleet_ = TestFleet({0, 0});
  reports(0, 0, 0.9);
  reports(1, 0, 0.95);
  EXPECT_EQ(choose({}, held(9, 10, 1)).reason, Reason::kPrefixHeld);
  EXPECT_EQ(choose({"--overload-token-usage-threshold", "0.9"}, held(9, 10, 1)).reason, Reason::kImbalanced);
}

TEST_F(PolicyOptionsTest, PrefixHashLoadFactor) {
  fleet_ = TestFleet({0, 0, 0, 0});
  const RequestFacts facts{.routing_text = "a prompt", .prefix = {}};
  const uint32_t owner = *choose({"--policy", "prefix_hash"}, facts).worker;
  fleet_.load(owner).requests = 14;  // four times the mean, and above it by more than ten
  EXPECT_EQ(choose({"--policy", "prefix_hash"}, facts).reason, Reason::kHashSpilled);
  const Choice kept = choose({"--policy", "prefix_hash", "--prefix-hash-load-factor", "5"}, facts);
  EXPECT_EQ(kept.reason, Reason::kHashed);
  EXPECT_EQ(kept.worker, owner);
}

TEST_F(PolicyOptionsTest, PrefixHashBalanceAbsThreshold) {
  fleet_ = TestFleet({0, 0, 0, 0});
  const RequestFacts facts{.routing_key = "a session", .prefix = {}};
  const uint32_t owner = *choose({"--policy", "consistent_hashing"}, facts).worker;
  fleet_.load(owner).requests = 14;
  EXPECT_EQ(choose({"--policy", "consistent_hashing"}, facts).reason, Reason::kHashSpilled);
  const Choice kept = choose({"--policy", "consistent_hashing", "--prefix-hash-balance-abs-threshold", "20"}, facts);
  EXPECT_EQ(kept.reason, Reason::kHashed);
  EXPECT_EQ(kept.worker, owner);
}

TEST_F(PolicyOptionsTest, LeastLoadKvPressureWeight) {
  fleet_ = TestFleet({0, 0});
  reports(0, 0, 0.5);     // the weight, in seconds
  reports(1, 1000, 0.0);  // half a second
  EXPECT_EQ(choose({"--policy", "least_load"}).worker, 0u);
  EXPECT_EQ(choose({"--policy", "least_load", "--least-load-kv-pressure-weight", "1"}).worker, 1u);
}

TEST_F(PolicyOptionsTest, LeastLoadDefaultThroughput) {
  fleet_ = TestFleet({0, 0});
  reports(0, 1000, 0.0);
  reports(1, 1000, 0.0, /*throughput=*/1000);
  EXPECT_EQ(choose({"--policy", "least_load"}).worker, 0u);
  EXPECT_EQ(choose({"--policy", "least_load", "--least-load-default-throughput", "500"}).worker, 1u);
}

TEST_F(PolicyOptionsTest, LeastLoadMeanPrefillTokens) {
  fleet_ = TestFleet({1, 0});
  reports(1, 900, 0.0);
  EXPECT_EQ(choose({"--policy", "least_load"}).worker, 1u);
  EXPECT_EQ(choose({"--policy", "least_load", "--least-load-mean-prefill-tokens", "100"}).worker, 0u);
}

TEST_F(PolicyOptionsTest, MaxIdleSecs) {
  fleet_ = TestFleet({0, 0});
  for (const bool forgets : {false, true}) {
    const auto policy = make_policy(
        parsed(forgets ? Flags{"--policy", "manual", "--max-idle-secs", "10"} : Flags{"--policy", "manual"}));
    const auto asked_at = [&](TimePoint now) {
      return policy->choose(fleet_.view(), {.routing_key = "a", .now = now, .prefix = {}}, rng_).reason;
    };
    EXPECT_EQ(asked_at(TimePoint(100s)), Reason::kKeyAssigned);
    EXPECT_EQ(asked_at(TimePoint(109s)), Reason::kRoutingKey);
    EXPECT_EQ(asked_at(TimePoint(120s)), forgets ? Reason::kKeyAssigned : Reason::kRoutingKey);
  }
}

TEST_F(PolicyOptionsTest, AssignmentMode) {
  fleet_ = TestFleet({5, 0, 5, 5});
  const auto spread = [&](const char* mode) {
    const auto policy = make_policy(parsed({"--policy", "manual", "--assignment-mode", mode}));
    std::set<uint32_t> used;
    for (int key = 0; key < 64; ++key) {
      const std::string name = std::to_string(key);
      used.insert(*policy->choose(fleet_.view(), {.routing_key = name, .prefix = {}}, rng_).worker);
    }
    return used;
  };
  EXPECT_EQ(spread("min_load"), std::set<uint32_t>{1});
  EXPECT_EQ(spread("min_group").size(), 4u);
  EXPECT_EQ(spread("random").size(), 4u);
}

// --- attempts ------------------------------------------------------------------------------------------------------

class RetryOptionsTest : public ::testing::Test {
 protected:
  // The pause before retry `retry` (0 = the first).
  Duration pause(Flags flags, int64_t retry) {
    flags.insert(flags.end(), {"--retry-jitter-factor", "0"});
    return RetryRules::from(parsed(flags)).pause(retry, std::nullopt, rng_);
  }
  Rng rng_{1};
};

TEST_F(RetryOptionsTest, RetryInitialBackoffMs) {
  EXPECT_EQ(pause({}, 0), 50ms);
  EXPECT_EQ(pause({"--retry-initial-backoff-ms", "200"}, 0), 200ms);
}

TEST_F(RetryOptionsTest, RetryBackoffMultiplier) {
  EXPECT_EQ(pause({}, 1), 75ms);
  EXPECT_EQ(pause({"--retry-backoff-multiplier", "4"}, 1), 200ms);
}

TEST_F(RetryOptionsTest, RetryMaxBackoffMs) {
  EXPECT_EQ(pause({}, 40), 30s);
  EXPECT_EQ(pause({"--retry-max-backoff-ms", "100"}, 40), 100ms);
}

TEST_F(RetryOptionsTest, RetryJitterFactor) {
  const auto different = [&](const char* factor) {
    const RetryRules rules = RetryRules::from(parsed({"--retry-jitter-factor", factor}));
    std::set<Duration> pauses;
    for (int i = 0; i < 100; ++i) pauses.insert(rules.pause(0, std::nullopt, rng_));
    EXPECT_GE(*pauses.begin(), 25ms);
    EXPECT_LE(*pauses.rbegin(), 75ms);
    return pauses.size();
  };
  EXPECT_EQ(different("0"), 1u);
  EXPECT_GT(different("0.5"), 50u);
}

// --- over sockets --------------------------------------------------------------------------------------------------

class OptionEffectsTest : public GatewayFixture {
 protected:
  using Received = ScriptedWorker::Received;

  // As start(), with nothing added but the ports.
  void start_bare(Flags flags) {
    flags.insert(flags.end(),
                 {"--host", "127.0.0.1", "--port", "0", "--prometheus-host", "127.0.0.1", "--prometheus-port", "0"});
    gateway_ = Gateway::start(parsed(flags), *time_).value();
    for (const auto& worker : workers_) gateway_->worker_started(worker->url());
    url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->port())).value();
  }
  void add(const SimWorker& worker) {
    ASSERT_EQ(call("POST", "/workers", Json{{"url", worker.url()}}.dump())->status, 202);
  }
  // Of several gateways in one test, the one that call() and metric() are about.
  void look_at(std::unique_ptr<Gateway>& other) {
    std::swap(gateway_, other);
    url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->port())).value();
  }
  // Faults in a row make the only worker unusable, which is a 503 of the gateway's own.
  int faults_until_it_is_left_alone(int at_most) {
    for (int i = 0; i < at_most; ++i) {
      if (code_of(generate()) == "no_available_workers") return i;
    }
    return at_most;
  }
};

TEST_F(OptionEffectsTest, ExposeWorkerHeader) {
  SimWorker& one = worker();
  start_bare({"--expose-worker-header"});
  EXPECT_EQ(generate()->headers.get("x-smg-routed-worker-id"), one.url());
  start_bare({});
  EXPECT_FALSE(generate()->headers.has("x-smg-routed-worker-id"));
}

TEST_F(OptionEffectsTest, CorsAllowedOrigins) {
  worker();
  start({"--cors-allowed-origins", "http://a", "http://b"});
  const auto allowed = [&](const char* origin) {
    return std::string(
        call("GET", "/health", "", {{"Origin", origin}})->headers.get("access-control-allow-origin").value_or(""));
  };
  EXPECT_EQ(allowed("http://a"), "http://a");
  EXPECT_EQ(allowed("http://b"), "http://b");
  EXPECT_EQ(allowed("http://c"), "");
}

TEST_F(OptionEffectsTest, RequestIdHeaders) {
  worker();
  start({"--request-id-headers", "X-My-Id", "X-Other-Id"});
  const auto id = [&](net::Headers headers) {
    return std::string(call("GET", "/health", "", std::move(headers))->headers.get("x-request-id").value_or(""));
  };
  EXPECT_EQ(id({{"X-Other-Id", "other"}, {"X-My-Id", "mine"}}), "mine");
  EXPECT_EQ(id({{"X-Other-Id", "other"}}), "other");
  EXPECT_NE(id({{"X-Request-Id", "theirs"}}), "theirs");
}

TEST_F(OptionEffectsTest, MaxPayloadSize) {
  worker();
  start({"--max-payload-size", "1000"});
  EXPECT_EQ(generate()->status, 200);
  const auto refused = generate(std::string(2000, 'x'));
  EXPECT_EQ(refused->status, 413);
  EXPECT_EQ(code_of(refused), "request_body_too_large");
}

TEST_F(OptionEffectsTest, HeaderReadTimeoutSecs) {
  start({"--header-read-timeout-secs", "1", "--idle-connection-timeout-secs", "0"});
  sluice::testing::RawClient client(gateway_->port());
  client.send("GET /health HTTP/1.1\r\nHost:");
  EXPECT_THAT(client.read_to_end(), Not(HasSubstr(" 200 ")));
  EXPECT_TRUE(client.at_end());
}

TEST_F(OptionEffectsTest, IdleConnectionTimeoutSecs) {
  start({"--idle-connection-timeout-secs", "1", "--header-read-timeout-secs", "0"});
  sluice::testing::RawClient client(gateway_->port());
  client.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.read_to_end(), HasSubstr(" 200 "));
  EXPECT_TRUE(client.at_end()) << "closed a second after the answer";
}

TEST_F(OptionEffectsTest, StreamBodyStallTimeoutSecs) {
  worker();
  start({"--stream-body-stall-timeout-secs", "1"});
  RawClient client(gateway_->port());
  client.send("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  const std::string answer = client.read_until("request_body_timeout");
  EXPECT_THAT(answer, HasSubstr(" 408 "));
}

TEST_F(OptionEffectsTest, RuntimeWorkerThreads) {
  start({"--runtime-worker-threads", "3"});
  // Each loop has a listening socket of its own on the same port.
  std::ifstream file("/proc/self/net/tcp");
  const std::string port = fmt::format(":{:04X} ", gateway_->port());
  int listening = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.find("0100007F" + port) != std::string::npos && line.find(" 0A ") != std::string::npos) ++listening;
  }
  EXPECT_EQ(listening, 3);
}

TEST_F(OptionEffectsTest, WorkerUrls) {
  time_ = &real_clock();
  const auto one = SimWorker::start(loops_).value();
  const auto two = SimWorker::start(loops_).value();
  start({"--worker-urls", one->url(), two->url()});
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 2; }));
  EXPECT_EQ(generate()->status, 200);
}

TEST_F(OptionEffectsTest, DpAware) {
  time_ = &real_clock();
  const auto engine = SimWorker::start(loops_, {.dp_size = 2}).value();
  for (const bool aware : {false, true}) {
    start(aware ? Flags{"--dp-aware"} : Flags{});
    add(*engine);
    ASSERT_TRUE(eventually([&] { return call("GET", "/readiness")->status == 200; }));
    EXPECT_EQ(workers_json().size(), aware ? 2u : 1u);
  }
}

TEST_F(OptionEffectsTest, WorkerStartupTimeoutSecs) {
  time_ = &real_clock();
  const auto late = SimWorker::start(loops_).value();
  late->set_health({.status = 503});
  start({"--worker-startup-timeout-secs", "1", "--health-check-interval-secs", "1"});
  add(*late);
  EXPECT_TRUE(eventually([&] { return workers_json()[0]["status"] == "failed"; })) << workers_json();
  late->set_health({});
  EXPECT_TRUE(eventually([&] { return workers_json()[0]["status"] == "ready"; })) << "failed is not for ever";
}

TEST_F(OptionEffectsTest, WorkerStartupCheckInterval) {
  time_ = &real_clock();
  const auto rarely = SimWorker::start(loops_).value();
  const auto often = SimWorker::start(loops_).value();
  rarely->set_health({.status = 503});
  often->set_health({.status = 503});
  start({"--worker-startup-check-interval", "1000"});
  add(*rarely);
  ASSERT_TRUE(eventually([&] { return rarely->counters().health_checks == 1; }));
  const auto first = std::move(gateway_);
  start({"--worker-startup-check-interval", "1"});
  add(*often);
  ASSERT_TRUE(eventually([&] { return often->counters().health_checks >= 3; }));
  EXPECT_EQ(rarely->counters().health_checks, 1);
}

TEST_F(OptionEffectsTest, DrainSettleSecs) {
  SimWorker& one = worker();
  start({"--drain-settle-secs", "100"});
  const std::string location = "/workers/" + workers_json()[0]["id"].get<std::string>();
  ASSERT_EQ(call("DELETE", location)->status, 202);
  EXPECT_TRUE(eventually([&] { return workers_json()[0]["status"] == "draining"; })) << workers_json();
  clock_.advance(99s);
  EXPECT_EQ(workers_json().size(), 1u);
  // The state is shown before the end of it is set.
  EXPECT_TRUE(eventually([&] {
    clock_.advance(1s);
    return workers_json().empty();
  }));
  EXPECT_EQ(one.active(), 0);
}

TEST_F(OptionEffectsTest, MinReadyWorkers) {
  SimWorker& one = worker();
  worker();
  start({"--min-ready-workers", "2"});
  EXPECT_EQ(call("GET", "/readiness")->status, 200);
  gateway_->worker_ended(one.url());
  EXPECT_EQ(call("GET", "/readiness")->status, 503);
  EXPECT_EQ(generate()->status, 200) << "the other one serves";
}

TEST_F(OptionEffectsTest, LoadMonitorInterval) {
  SimWorker& one = worker();
  start({"--policy", "least_load", "--load-monitor-interval", "1"});
  ASSERT_TRUE(eventually([&] { return one.counters().load_reads >= 1; }));
  // The default of 10 s would need half a minute for that, which is longer than eventually() looks.
  EXPECT_TRUE(eventually([&] { return one.counters().load_reads >= 4; }));
}

TEST_F(OptionEffectsTest, DisableLoadMonitoring) {
  worker();
  start({"--policy", "least_load", "--disable-load-monitoring", "--load-monitor-interval", "1"});
  auto other = std::move(gateway_);
  start({"--policy", "least_load", "--load-monitor-interval", "1"});
  ASSERT_TRUE(eventually([&] { return metric("smg_engine_load_polls_total") >= 3; }));
  look_at(other);
  EXPECT_EQ(metric("smg_engine_load_polls_total"), 0);
}

TEST_F(OptionEffectsTest, EngineMetrics) {
  SimWorker& one = worker();
  start({"--policy", "round_robin", "--engine-metrics", "--load-monitor-interval", "1"});
  EXPECT_TRUE(eventually([&] { return metric("smg_engine_load_polls_total", {one.url()}) > 0; }));
  EXPECT_THAT(gateway_->metrics().render(), HasSubstr("smg_engine_token_usage{worker=\"" + one.url()));
}

TEST_F(OptionEffectsTest, RlFanoutConcurrency) {
  // Each waits a while for a second one to be asked beside it.
  std::atomic<int> at_once{0}, most{0};
  const auto serve = [&](net::ServerExchange& exchange, const Received&) -> net::Task<> {
    most = std::max(most.load(), ++at_once);
    for (int i = 0; i < 20 && most < 2; ++i) co_await loops_[0].sleep(5ms);
    --at_once;
    auto response = net::Response::json(200, "{}");
    co_await exchange.respond(std::move(response));
  };
  ScriptedWorker one(loops_, ScriptedWorker::Serve(serve)), two(loops_, ScriptedWorker::Serve(serve));
  const auto most_with = [&](const char* bound) {
    most = 0;
    start({"--rl-fanout-concurrency", bound});
    gateway_->worker_started(one.url());
    gateway_->worker_started(two.url());
    EXPECT_EQ(call("POST", "/pause_generation", "{}")->status, 200);
    gateway_.reset();
    return most.load();
  };
  EXPECT_EQ(most_with("1"), 1);
  EXPECT_EQ(most_with("2"), 2);
}

TEST_F(OptionEffectsTest, JobQueueCapacity) {
  time_ = &real_clock();
  start({"--job-queue-capacity", "1"});
  SimWorker& late = worker();
  late.set_health({.status = 503});
  SimWorker& next = worker();
  add(late);
  const auto full = call("POST", "/workers", Json{{"url", next.url()}}.dump());
  EXPECT_EQ(full->status, 503);
  EXPECT_EQ(code_of(full), "JOB_QUEUE_FULL");
  EXPECT_THAT(full->body, HasSubstr("--job-queue-capacity"));
  EXPECT_TRUE(full->headers.has("retry-after"));
  EXPECT_EQ(call("POST", "/add_worker?url=" + next.url())->status, 503);
  EXPECT_EQ(workers_json().size(), 1u);
  add(late);  // it is there already
  late.set_health({});
  ASSERT_TRUE(eventually([&] { return workers_json()[0]["is_healthy"] == true; }));
  add(next);
}

TEST_F(OptionEffectsTest, JobQueueConcurrency) {
  // Each waits a while for a second one to be asked beside it.
  std::atomic<int> at_once{0}, most{0};
  const net::Handler serve = [&](net::ServerExchange& exchange) -> net::Task<> {
    if (exchange.request().path() == "/health") {
      most = std::max(most.load(), ++at_once);
      for (int i = 0; i < 20 && most < 2; ++i) co_await loops_[0].sleep(5ms);
      --at_once;
    }
    auto response = net::Response::json(200, "{}");
    co_await exchange.respond(std::move(response));
  };
  net::Server one(loops_, {}, serve), two(loops_, {}, serve), three(loops_, {}, serve);
  const auto most_with = [&](const char* bound) {
    most = 0;
    start({"--job-queue-concurrency", bound});
    for (net::Server* each : {&one, &two, &three}) {
      const auto port = each->listen("127.0.0.1", 0).value();
      EXPECT_EQ(call("POST", "/workers", fmt::format(R"({{"url":"http://127.0.0.1:{}"}})", port))->status, 202);
    }
    EXPECT_TRUE(eventually(
        [&] { return call("GET", "/readiness")->body.find(R"("healthy_workers":3)") != std::string::npos; }));
    gateway_.reset();
    return most.load();
  };
  EXPECT_EQ(most_with("1"), 1);
  EXPECT_EQ(most_with("2"), 2);
}

TEST_F(OptionEffectsTest, EvictionIntervalSecs) {
  worker();
  start({"--eviction-interval-secs", "1"});
  const double nodes = metric("smg_prefix_index_nodes");
  ASSERT_EQ(generate("a prompt that is remembered")->status, 200);
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > nodes; }));
  ASSERT_EQ(call("POST", "/flush_cache")->status, 200);
  // The claim counts for nothing from now on; the next round takes it out. By default that is a minute away.
  EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_evictions_total", {"reason=\"worker\""}) == 1; }));
  ASSERT_EQ(generate("a prompt that is not asked for again")->status, 200);
  ASSERT_TRUE(eventually([&] { return metric("smg_prefix_index_nodes") > nodes; }));
  clock_.advance(61s);
  EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_evictions_total", {"reason=\"age\""}) == 1; }));
  EXPECT_EQ(metric("smg_prefix_index_nodes"), nodes);
}

TEST_F(OptionEffectsTest, MaxTreeSize) {
  worker();
  start({"--max-tree-size", "2000"});
  for (int i = 0; i < 20; ++i) ASSERT_EQ(generate(std::to_string(i) + std::string(400, 'x'))->status, 200);
  EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_evictions_total", {"reason=\"size\""}) > 0; }));
  EXPECT_EQ(metric("smg_prefix_index_evictions_total", {"reason=\"budget\""}), 0);
}

TEST_F(OptionEffectsTest, PrefixIndexBytes) {
  worker();
  start({"--prefix-index-bytes", "65536"});
  for (int i = 0; i < 40; ++i) ASSERT_EQ(generate(std::to_string(i) + std::string(4000, 'x'))->status, 200);
  EXPECT_TRUE(eventually([&] { return metric("smg_prefix_index_evictions_total", {"reason=\"budget\""}) > 0; }));
  EXPECT_EQ(metric("smg_prefix_index_budget_bytes"), 65536);
  EXPECT_LE(metric("smg_prefix_index_bytes"), 65536);
}

TEST_F(OptionEffectsTest, HealthCheckEndpoint) {
  time_ = &real_clock();
  const auto one = SimWorker::start(loops_).value();
  start({"--health-check-endpoint", "/health_generate"});
  add(*one);
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 1; }));
  std::set<std::string> asked;
  for (const auto& received : one->received()) asked.insert(received.target);
  EXPECT_TRUE(asked.contains("/health_generate"));
  EXPECT_FALSE(asked.contains("/health"));
}

TEST_F(OptionEffectsTest, HealthCheckTimeoutSecs) {
  time_ = &real_clock();
  SimWorker& one = worker();
  start({"--health-check-timeout-secs", "1", "--health-check-interval-secs", "1", "--health-failure-threshold", "1"});
  one.set_health({.delay = 2s});
  EXPECT_TRUE(eventually([&] { return metric("smg_worker_health") == 0; })) << "a slow answer is none";
}

TEST_F(OptionEffectsTest, DisableHealthCheck) {
  time_ = &real_clock();
  worker();
  start({"--disable-health-check", "--health-check-interval-secs", "1"});
  auto other = std::move(gateway_);
  start({"--health-check-interval-secs", "1"});
  ASSERT_TRUE(eventually([&] { return metric("smg_worker_health_checks_total") >= 4; }));
  look_at(other);
  EXPECT_LE(metric("smg_worker_health_checks_total"), 1) << "that of its registration";
}

TEST_F(OptionEffectsTest, HealthCheckPort) {
  const uint16_t port = sluice::testing::RawListener().port();  // free again
  start({"--health-check-port", std::to_string(port)});
  EXPECT_EQ(gateway_->health_port(), port);
  url_ = net::parse_url(fmt::format("http://127.0.0.1:{}", port)).value();
  EXPECT_EQ(call("GET", "/health")->status, 200);
  EXPECT_EQ(call("GET", "/workers")->status, 404);
}

TEST_F(OptionEffectsTest, RequestTimeoutSecs) {
  SimWorker& one = worker();
  start({"--request-timeout-secs", "1", "--disable-retries"});
  one.set_fault({.kind = Kind::kStall});
  const auto late = generate();
  EXPECT_EQ(late->status, 504);
  EXPECT_THAT(late->body, HasSubstr("waiting for the response head took longer than 1 s"));
  one.set_fault({.kind = Kind::kMute, .chunks = 1});
  ++sent_;
  RawClient client(gateway_->port());
  client.post("/generate", body_of("x", /*stream=*/true));
  EXPECT_THAT(client.read_until("took longer than 1 s"), HasSubstr("reading the response body took longer than 1 s"));
}

TEST_F(OptionEffectsTest, UpstreamPoolIdleTimeoutSecs) {
  worker();
  start({"--upstream-pool-idle-timeout-secs", "0"});
  auto other = std::move(gateway_);
  start({"--upstream-pool-idle-timeout-secs", "2"});
  const auto idle = [&] { return metric("smg_upstream_connections", {"idle"}); };
  ASSERT_EQ(generate()->status, 200);
  ASSERT_TRUE(eventually([&] { return idle() == 1; }));
  look_at(other);
  ASSERT_EQ(generate()->status, 200);
  ASSERT_TRUE(eventually([&] { return idle() == 1; }));
  look_at(other);
  EXPECT_TRUE(eventually([&] { return idle() == 0; }));
  look_at(other);
  EXPECT_EQ(idle(), 1) << "kept for ever";
}

TEST_F(OptionEffectsTest, MaxConcurrentRequestsOfZeroIsNoBound) {
  worker();
  start({"--max-concurrent-requests", "0", "--queue-size", "0"});
  EXPECT_EQ(generate()->status, 200);
}

TEST_F(OptionEffectsTest, RateLimitTokensPerSecond) {
  worker();
  start({"--rate-limit-tokens-per-second", "2", "--queue-size", "1"});
  EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(generate()->status, 200);
  ++sent_;
  RawClient waits(gateway_->port());
  waits.post("/generate", body_of("x"));
  ASSERT_TRUE(eventually([&] { return metric("smg_admission_queue_depth") == 1; }));
  const auto refused = generate();
  EXPECT_EQ(refused->status, 429);
  EXPECT_EQ(code_of(refused), "admission_queue_full");
  EXPECT_EQ(refused->headers.get("retry-after"), "1");
  clock_.advance(500ms);
  EXPECT_THAT(waits.read_until("\r\n\r\n"), HasSubstr(" 200 ")) << "it is called, though nobody ends meanwhile";
}

TEST_F(OptionEffectsTest, RetryMaxRetries) {
  SimWorker& one = worker();
  one.set_fault({.kind = Kind::kStatus, .status = 500});
  start({"--retry-max-retries", "2", "--retry-initial-backoff-ms", "0"});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(one.counters().generations, 2);
}

TEST_F(OptionEffectsTest, DisableRetries) {
  SimWorker& one = worker();
  one.set_fault({.kind = Kind::kStatus, .status = 500});
  start({"--disable-retries"});
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(one.counters().generations, 1);
}

TEST_F(OptionEffectsTest, CbFailureThreshold) {
  worker().set_fault({.kind = Kind::kStatus, .status = 500});
  start({"--disable-retries", "--cb-failure-threshold", "3"});
  EXPECT_EQ(faults_until_it_is_left_alone(20), 3);
}

TEST_F(OptionEffectsTest, CbTimeoutDurationSecs) {
  worker().set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  start({"--disable-retries", "--cb-failure-threshold", "1", "--cb-timeout-duration-secs", "7"});
  EXPECT_EQ(generate()->status, 500);
  clock_.advance(6s);
  EXPECT_EQ(generate()->status, 503);
  clock_.advance(1s);
  EXPECT_EQ(generate()->status, 200);
}

TEST_F(OptionEffectsTest, CbSuccessThreshold) {
  worker().set_fault({.kind = Kind::kStatus, .status = 500, .times = 1});
  start({"--disable-retries", "--disable-health-check", "--cb-failure-threshold", "1", "--cb-success-threshold", "1"});
  EXPECT_EQ(generate()->status, 500);
  clock_.advance(60s);
  EXPECT_EQ(generate()->status, 200);
  EXPECT_EQ(metric("smg_worker_cb_state"), 0) << "closed by one trial";
}

TEST_F(OptionEffectsTest, CbWindowDurationSecs) {
  worker().set_fault({.kind = Kind::kStatus, .status = 500});
  start({"--disable-retries", "--cb-failure-threshold", "2", "--cb-window-duration-secs", "5"});
  EXPECT_EQ(generate()->status, 500);
  clock_.advance(6s);
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(metric("smg_worker_cb_state"), 0) << "the first one is too old to count";
  EXPECT_EQ(generate()->status, 500);
  EXPECT_EQ(metric("smg_worker_cb_state"), 1);
}

TEST_F(OptionEffectsTest, DisableCircuitBreaker) {
  worker().set_fault({.kind = Kind::kStatus, .status = 500});
  start({"--disable-retries", "--disable-circuit-breaker"});
  EXPECT_EQ(faults_until_it_is_left_alone(20), 20);
}

TEST_F(OptionEffectsTest, PrometheusDurationBuckets) {
  start({"--prometheus-duration-buckets", "0.5", "2"});
  ASSERT_EQ(call("GET", "/health")->status, 200);
  ASSERT_TRUE(eventually([&] { return metric("smg_http_request_duration_seconds_count") == 1; }));
  const std::string text = gateway_->metrics().render();
  const std::string series = "smg_http_request_duration_seconds_bucket{method=\"GET\",path=\"/health\",le=";
  size_t buckets = 0;
  for (size_t at = 0; (at = text.find(series, at)) != std::string::npos; ++at) ++buckets;
  EXPECT_EQ(buckets, 3u);
  EXPECT_THAT(text, HasSubstr(series + "\"0.5\"}"));
  EXPECT_THAT(text, HasSubstr(series + "\"2\"}"));
  EXPECT_THAT(text, HasSubstr(series + "\"+Inf\"}"));
}

}  // namespace
}  // namespace sluice::gateway
