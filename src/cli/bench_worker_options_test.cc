#include "cli/bench_worker_options.h"

#include <gtest/gtest.h>

namespace sluice::cli {
namespace {

Result<Simulation> parse(std::vector<std::string> arguments) {
  SLUICE_TRY(const auto options, bench_worker_option_table().parse(arguments));
  return simulation(options);
}

TEST(BenchWorkerOptionsTest, DefaultsAreThoseOfTheSimulatedWorker) {
  const auto made = parse({}).value();
  const testing::SimWorkerOptions usual;
  EXPECT_EQ(made.worker.host, usual.host);
  EXPECT_EQ(made.worker.model, usual.model);
  EXPECT_EQ(made.worker.default_tokens, usual.default_tokens);
  EXPECT_EQ(made.worker.canned_chunks, usual.canned_chunks);
  EXPECT_EQ(made.worker.engine.prefill_tokens_per_s, usual.engine.prefill_tokens_per_s);
  EXPECT_EQ(made.worker.engine.decode_base, usual.engine.decode_base);
  EXPECT_EQ(made.worker.engine.decode_per_request, usual.engine.decode_per_request);
  EXPECT_EQ(made.worker.engine.kv_tokens, usual.engine.kv_tokens);
  EXPECT_EQ(made.worker.engine.context_length, usual.engine.context_length);
  EXPECT_TRUE(made.worker.engine.prefix_cache);
  EXPECT_EQ(made.fault.kind, testing::SimFault::Kind::kNone);
  EXPECT_EQ(made.health.status, 200);
}

TEST(BenchWorkerOptionsTest, EveryFaultOfTheTableIsKnown) {
  for (const auto& spec : bench_worker_option_table().specs()) {
    if (spec.name != "fault") continue;
    ASSERT_FALSE(spec.choices.empty());
    for (const auto choice : spec.choices) EXPECT_TRUE(testing::fault_kind(choice)) << choice;
  }
  const auto made =
      parse({"--fault", "die", "--fault-chunks", "3", "--fault-scope", "everything", "--fault-times", "2"});
  EXPECT_EQ(made->fault.kind, testing::SimFault::Kind::kDie);
  EXPECT_EQ(made->fault.chunks, 3);
  EXPECT_EQ(made->fault.times, 2);
  EXPECT_EQ(made->fault.scope, testing::SimFault::Scope::kEverything);
}

TEST(BenchWorkerOptionsTest, RefusesAPoolThatHoldsNoBlock) {
  EXPECT_EQ(parse({"--kv-tokens", "8", "--block-size", "16"}).error().code, ErrorCode::kBadOption);
}

TEST(BenchWorkerOptionsTest, TheCacheSimulationIsTheSimulatorsWorkerAndAModeOfItsOwn) {
  EXPECT_FALSE(parse({})->worker.cache);
  const auto cache = parse({"--cache-simulation"})->worker.cache;
  ASSERT_TRUE(cache);
  const testing::CacheSimulation usual;
  EXPECT_EQ(cache->rules.kv_blocks, usual.rules.kv_blocks);
  EXPECT_EQ(cache->rules.prefill_base, usual.rules.prefill_base);
  EXPECT_EQ(cache->rules.prefill_per_token, usual.rules.prefill_per_token);
  EXPECT_EQ(cache->rules.decode_slots, usual.rules.decode_slots);
  EXPECT_EQ(cache->decode, usual.decode);
  EXPECT_EQ(cache->decode_per_token, usual.decode_per_token);
  for (const auto& other : {std::vector<std::string>{"--canned"}, {"--dp-size", "2"}}) {
    auto flags = other;
    flags.insert(flags.begin(), "--cache-simulation");
    EXPECT_EQ(parse(flags).error().code, ErrorCode::kBadOption) << other[0];
  }
}

// In the time of the simulated engine: a prompt of seven tokens, and the token after it.
TEST(BenchWorkerOptionsTest, PrefillChunkIsWhatAStepComputes) {
  const auto steps = [](const std::vector<std::string>& flags) {
    testing::SimEngine engine(parse(flags)->worker.engine);
    EXPECT_TRUE(engine.submit({1, 2, 3, 4, 5, 6, 7}, {8}).ok());
    int count = 0;
    while (engine.has_work()) {
      engine.step();
      ++count;
    }
    return count;
  };
  EXPECT_EQ(steps({}), 1);
  EXPECT_EQ(steps({"--prefill-chunk", "3"}), 3);
}

}  // namespace
}  // namespace sluice::cli
