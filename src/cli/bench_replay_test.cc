#include "cli/bench_replay.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>

#include "gateway/gateway.h"
#include "testing/sim_worker.h"

namespace sluice::cli {
namespace {

using namespace std::chrono_literals;

// Four conversations' beginnings in turn, thirty requests.
class Fixed final : public gateway::Workload {
 public:
  std::optional<gateway::SimulatedRequest> next() override {
    if (sent_ == 30) return std::nullopt;
    text_ = std::string(640, static_cast<char>('a' + sent_ * sent_ % 7 % 4)) + fmt::format("{:064}", sent_);
    ++sent_;
    gateway::SimulatedRequest request;
    request.text = text_;
    return request;
  }

 private:
  int sent_ = 0;
  std::string text_;
};

class ReplayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    rules_.workers = 2;
    rules_.worker.kv_blocks = 28;  // two beginnings and some
    rules_.worker.prefill_base = 100us;
    rules_.worker.prefill_per_token = 1us;
    rules_.decode = 1ms;
    rules_.concurrency = 1;
    rules_.warm_up = 0s;
    rules_.duration = 60s;  // it ends with the workload
    rules_.streamed = true;
    start("round_robin", {.rules = rules_.worker, .decode = rules_.decode});
  }
  // Anew, with no caches filled.
  void start(const std::string& policy, const testing::CacheSimulation& cache) {
    gateway_.reset();
    workers_.clear();
    testing::SimWorkerOptions options;
    options.cache = cache;
    std::vector<std::string> flags{"--policy", policy, "--port", "0", "--prometheus-port", "0"};
    for (int64_t i = 0; i < rules_.workers; ++i) {
      workers_.push_back(testing::SimWorker::start(loops_, options).value());
    }
    gateway_ = gateway::Gateway::start(gateway::gateway_option_table().parse(flags).value()).value();
    for (const auto& worker : workers_) gateway_->worker_started(worker->url());
    target_.url = net::parse_url(fmt::format("http://127.0.0.1:{}", gateway_->port())).value();
  }
  gateway::SimulationResult simulated(const std::string& policy, gateway::Workload& workload) {
    return gateway::simulate(rules_, policy, gateway::gateway_option_table().defaults(), workload);
  }
  gateway::SimulationResult over_sockets() {
    Fixed workload;
    return over_sockets(workload);
  }
  gateway::SimulationResult over_sockets(gateway::Workload& workload) {
    const auto result = replay(target_, rules_, workload);
    EXPECT_TRUE(result.ok() && result->failed == 0) << (result.ok() ? result->error : result.error().message);
    return result.ok() ? result->figures : gateway::SimulationResult();
  }

  gateway::SimulationRules rules_;
  net::LoopGroup loops_{1};
  std::vector<std::unique_ptr<testing::SimWorker>> workers_;
  std::unique_ptr<gateway::Gateway> gateway_;
  ReplayOptions target_;
};

TEST_F(ReplayTest, TheSameRequestsFindTheSameCachedOverSocketsAsInTheSimulator) {
  Fixed workload;
  const auto expected = simulated("round_robin", workload);
  ASSERT_EQ(expected.requests, 30);
  ASSERT_GT(expected.hit_rate, 0.2);
  ASSERT_LT(expected.hit_rate, 0.8) << "the caches are too large to tell anything";
  for (const bench::Api api : {bench::Api::kGenerate, bench::Api::kCompletions, bench::Api::kChat}) {
    target_.api = api;
    target_.model = "sim-model";
    const auto seen = over_sockets();
    EXPECT_EQ(seen.requests, 30);
    EXPECT_DOUBLE_EQ(seen.hit_rate, expected.hit_rate);
    EXPECT_EQ(seen.imbalance, 1) << "fifteen for each of two workers";
    EXPECT_GE(seen.latency_p50, expected.latency_p50) << "nothing is faster than its simulation";
    EXPECT_GE(seen.ttft_p50, expected.ttft_p50);
    EXPECT_LE(seen.ttft_p50, seen.latency_p50);
    ASSERT_TRUE(flush_caches(target_.url).ok());
  }
}

// The caches hold all, so that it does not matter which worker was the first to get a prompt; only that those that
// begin alike find it again.
TEST_F(ReplayTest, ATraceFindsTheSameCachedOverSocketsAsInTheSimulator) {
  constexpr Duration kPerToken = 100us;
  const std::string path = ::testing::TempDir() + "sluice_replay_" + std::to_string(::getpid()) + ".jsonl";
  {
    std::ofstream file(path);
    for (int i = 0; i < 24; ++i) {
      file << fmt::format(R"({{"timestamp": {}, "text": "{}{:0128}", "output_length": {}}})", i,
                          std::string(static_cast<size_t>(640 + 64 * (i % 3)), static_cast<char>('a' + i % 3)), i,
                          1 + i % 7)
           << '\n';
    }
  }
  rules_.worker.kv_blocks = 1000;
  start("cache_aware", {.rules = rules_.worker, .decode = 0s, .decode_per_token = kPerToken});
  const auto expected = simulated("cache_aware", *gateway::read_trace(path, kPerToken).value());
  ASSERT_EQ(expected.requests, 24);
  ASSERT_GT(expected.hit_rate, 0.5);
  const auto seen = over_sockets(*gateway::read_trace(path, kPerToken).value());
  EXPECT_EQ(seen.requests, 24);
  EXPECT_DOUBLE_EQ(seen.hit_rate, expected.hit_rate);
  EXPECT_GE(seen.latency_p50, expected.latency_p50) << "fewer tokens than the trace says were asked for";
  std::remove(path.c_str());
}

TEST(FirstRequestsTest, BeginOneAfterTheOtherWithAWarmUpAndWithout) {
  gateway::SimulationRules rules;
  rules.concurrency = 128;
  rules.warm_up = 2s;
  rules.duration = 30s;
  EXPECT_EQ(first_requests_apart(rules), Duration(2s) / 1280);
  rules.warm_up = 0s;
  EXPECT_EQ(first_requests_apart(rules), 10ms) << "the most";
  rules.duration = 1s;
  EXPECT_EQ(first_requests_apart(rules), std::chrono::nanoseconds(1s) / 1280);
  rules.concurrency = 0;
  EXPECT_EQ(first_requests_apart(rules), 0s) << "an open loop has its own times";
}

TEST_F(ReplayTest, WhatCannotBeSeenIsNotClaimed) {
  rules_.streamed = false;
  const auto seen = over_sockets();
  EXPECT_EQ(seen.requests, 30);
  EXPECT_TRUE(std::isnan(seen.ttft_p50)) << "a whole answer says nothing of its first token";
  EXPECT_TRUE(std::isnan(seen.predicted_hit_rate));
}

TEST_F(ReplayTest, AClosedLoopInWhichNothingTakesTimeIsRefused) {
  rules_.decode = rules_.worker.prefill_base = 0s;
  Fixed workload;
  EXPECT_EQ(replay(target_, rules_, workload).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(ReplayTest, FailuresAreCountedAndTheFirstIsNamed) {
  for (const auto& worker : workers_) worker->set_fault({.kind = testing::SimFault::Kind::kStatus, .status = 400});
  Fixed workload;
  const auto result = replay(target_, rules_, workload);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->failed, 30u);
  EXPECT_NE(result->error.find("400"), std::string::npos) << result->error;
}

}  // namespace
}  // namespace sluice::cli
