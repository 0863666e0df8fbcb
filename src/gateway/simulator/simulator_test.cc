#include "gateway/simulator/simulator.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

class SimulatorTest : public ::testing::Test {
 protected:
  SimulationResult run(const std::string& policy, GroupsOptions groups = {}, int64_t concurrency = 0) {
    SimulationRules rules{.concurrency = concurrency, .duration = 5s, .streamed = true};
    const auto workload = make_groups(groups);
    return simulate(rules, policy, gateway_option_table().defaults(), *workload);
  }
};

TEST_F(SimulatorTest, ARunIsAFunctionOfItsArguments) {
  for (const char* policy : {"cache_aware", "min_cost", "power_of_two"}) {
    const auto first = run(policy, {.rate = 100}), second = run(policy, {.rate = 100});
    EXPECT_GT(first.requests, 400);
    EXPECT_EQ(first.requests, second.requests);
    EXPECT_EQ(first.latency_p99, second.latency_p99);
    EXPECT_EQ(first.hit_rate, second.hit_rate);
  }
}

TEST_F(SimulatorTest, WhoeverKnowsTheCachesFindsThePrefixesAndWhoeverDoesNotDoesNot) {
  const auto oracle = run("oracle", {.rate = 100});
  EXPECT_NEAR(oracle.hit_rate, 8192.0 / 8704, 0.005) << "all but the questions";
  EXPECT_NEAR(oracle.latency_p50, 0.1036, 0.0005) << "1 ms, 128 tokens, 100 ms of decoding";
  EXPECT_LT(run("round_robin", {.rate = 20}).hit_rate, 0.6) << "no worker can hold all prefixes";
  EXPECT_NEAR(run("passthrough", {.rate = 20}).imbalance, 4, 1e-9);
}

// As in the gateway, which polls for a policy that needs it, or for --engine-metrics.
TEST_F(SimulatorTest, APolicyThatAsksForNoLoadIsNotToldHowMuchACacheHolds) {
  const SimulationRules rules{.concurrency = 128, .duration = 5s, .streamed = true};
  const auto requests = [&](const char* policy, bool engine_metrics) {
    GatewayOptions options = gateway_option_table().defaults();
    options.engine_metrics = engine_metrics;
    return simulate(rules, policy, options, *make_groups({.hot = true})).requests;
  };
  EXPECT_NE(requests("cache_aware", false), requests("cache_aware", true));
  EXPECT_EQ(requests("min_cost", false), requests("min_cost", true)) << "it is told in any case";
}

// Whoever sees what is left sends each to the worker with least, so that two are apart by one request at most: 128
// tokens, which no cache holds. One that gets all has all of it.
TEST_F(SimulatorTest, TheWorkOfTwoWorkersIsApartByWhatOneHasMore) {
  const auto apart = [](const char* policy, double rate) {
    SimulationRules rules{.workers = 2, .duration = 5s, .streamed = true, .work_apart = true};
    rules.worker.prefill_base = 0s;
    const auto workload = make_groups({.groups = 1, .system_chars = 0, .question_chars = 512, .rate = rate});
    return simulate(rules, policy, gateway_option_table().defaults(), *workload);
  };
  const auto least = apart("oracle", 600);
  EXPECT_GT(least.work_apart, 0);
  EXPECT_LE(least.work_apart_most, 128 * 20e-6 + 1e-9);
  EXPECT_GT(apart("passthrough", 300).work_apart_most, 2 * 128 * 20e-6);
  EXPECT_EQ(run("oracle", {.rate = 100}).work_apart, 0) << "nobody asked for it";
}

TEST_F(SimulatorTest, AClosedLoopKeepsItsNumberInFlight) {
  const auto result = run("cache_aware", {}, 32);
  EXPECT_NEAR(result.requests_per_s * result.latency_p50, 32, 3) << "Little's law";
}

// Caches for two fifths of all prefixes, and one prefix that half of all requests want: choices that see only loads are
// four times worse, and one worker cannot serve the hot prefix.
TEST_F(SimulatorTest, MinCostComesNearWhoeverKnowsTheCachesAndTheQueues) {
  struct Load {
    double rate;
    int64_t concurrency;
  };
  for (const Load load : {Load{100, 0}, Load{400, 0}, Load{0, 128}}) {
    for (const bool hot : {false, true}) {
      const GroupsOptions groups{.hot = hot, .rate = load.rate};
      const auto oracle = run("oracle", groups, load.concurrency), ours = run("min_cost", groups, load.concurrency);
      SCOPED_TRACE(fmt::format("{} at {}/s, {} in flight", hot ? "hot" : "uniform", load.rate, load.concurrency));
      EXPECT_GT(ours.requests_per_s, 0.95 * oracle.requests_per_s);
      EXPECT_GT(ours.hit_rate, 0.95 * oracle.hit_rate);
      EXPECT_LT(ours.latency_p99, 1.15 * oracle.latency_p99);
    }
  }
}

// Nothing is known of the workers' speed while all prefixes are computed, and whole answers tell of it late: with seed
// 3 a queue that was believed to be longer than it is made copies, and 2.3 s passed until nobody waited.
TEST_F(SimulatorTest, AColdStartOfWholeAnswersEndsSoonWithMinCost) {
  struct Start {
    bool hot;
    uint64_t seed;
  };
  for (const Start start : {Start{false, 3}, Start{false, 60}, Start{true, 14}, Start{true, 41}}) {
    const SimulationRules rules{.duration = 5s, .seed = start.seed};
    const auto result = [&](const char* policy) {
      const auto workload = make_groups({.hot = start.hot, .rate = 400, .seed = start.seed});
      return simulate(rules, policy, gateway_option_table().defaults(), *workload);
    };
    EXPECT_LT(result("min_cost").latency_p99, 1.15 * result("oracle").latency_p99) << start.hot << " " << start.seed;
  }
}

// Slow workers, each with room for ten of 32 prefixes, and answers that say nothing until they are whole: a copy pushes
// out what is computed again at once.
TEST_F(SimulatorTest, MinCostMakesNoCopiesWhereCachesJustHoldAllPrefixes) {
  const SimulationRules rules{.worker = {.kv_blocks = 353, .prefill_base = 20ms, .prefill_per_token = 1500us},
                              .concurrency = 16,
                              .warm_up = 60s,
                              .duration = 100s};
  const auto workload = make_groups({.groups = 32, .system_chars = 2048, .question_chars = 256});
  const auto ours = simulate(rules, "min_cost", gateway_option_table().defaults(), *workload);
  EXPECT_GT(ours.hit_rate, 0.95 * 2048 / 2304);
}

class TraceTest : public ::testing::Test {
 protected:
  ~TraceTest() override { std::filesystem::remove(path_); }
  std::string write(const std::string& text) {
    std::ofstream(path_) << text;
    return path_;
  }

  const std::string path_ = ::testing::TempDir() + "sluice_trace_" + std::to_string(::getpid()) + ".jsonl";
};

TEST_F(TraceTest, ReadsTextAndBlocksInOrderOfTime) {
  const auto trace = read_trace(write(R"({"timestamp": 2000, "text": "hello", "output_length": 10}
{"timestamp": 1000, "input_length": 700, "hash_ids": [7, 8]}
{"timestamp": 3000, "input_length": 600, "hash_ids": [7, 9]}
)"),
                                5ms);
  ASSERT_TRUE(trace.ok()) << trace.error().message;
  const auto first = (*trace)->next();
  EXPECT_EQ(first->at, 0s);
  const std::string blocks(first->text);
  EXPECT_EQ(blocks.size(), 2800u);
  EXPECT_FALSE(first->output_tokens);
  const auto second = (*trace)->next();
  EXPECT_EQ(second->at, 1s);
  EXPECT_EQ(second->text, "hello");
  EXPECT_EQ(second->decode, 50ms);
  EXPECT_EQ(second->output_tokens, 10);
  const auto third = (*trace)->next();
  EXPECT_EQ(third->text.substr(0, 2048), blocks.substr(0, 2048)) << "the same block is the same text";
  EXPECT_NE(third->text.substr(2048), blocks.substr(2048, 352));
  EXPECT_FALSE((*trace)->next());
}

TEST_F(TraceTest, ABadLineIsNamed) {
  EXPECT_EQ(read_trace("/nowhere/trace", 5ms).error().code, ErrorCode::kNotFound);
  for (const char* line :
       {"[]", "{\"text\":\"x\"}", "{\"timestamp\":1}", "{\"timestamp\":1,\"hash_ids\":[-1],\"input_length\":4}",
        "{\"timestamp\":1.7e15,\"text\":\"x\"}", "{\"timestamp\":1,\"text\":\"x\",\"output_length\":5000000}"}) {
    const auto trace = read_trace(write(std::string("{\"timestamp\":0,\"text\":\"x\"}\n") + line), 5ms);
    ASSERT_FALSE(trace.ok()) << line;
    EXPECT_NE(trace.error().message.find(":2: "), std::string::npos) << trace.error().message;
  }
}

}  // namespace
}  // namespace sluice::gateway
