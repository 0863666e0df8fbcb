#include "engine/memory_plan.h"

#include <gtest/gtest.h>

#include "base/machine.h"

namespace sluice::engine {
namespace {

constexpr int64_t kMiB = 1 << 20;

EngineOptions options(const std::vector<std::string>& flags = {}) {
  auto parsed = engine_option_table().parse(flags);
  EXPECT_TRUE(parsed.ok());
  return *parsed;
}

models::ModelInfo model() {
  models::ModelInfo m;
  m.context_length = 2048;
  m.kv_bytes_per_token = 1024;
  m.weight_bytes = 100 * kMiB;
  return m;
}

TEST(MemoryPlanTest, TakesTheFractionOfThisRanksShareLessTheWeights) {
  const auto flags = options({"--mem-fraction-static", "0.25"});
  auto plan = plan_memory(flags, model(), {.limit_bytes = 1600 * kMiB, .host_ranks = 2});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->max_total_tokens, (1600 / 2 / 4 - 100) * 1024);
  plan = plan_memory(flags, model(), {.limit_bytes = 1600 * kMiB, .host_ranks = 2, .shared_weights = true});
  EXPECT_EQ(plan->max_total_tokens, (1600 / 2 / 4 - 50) * 1024);
  EXPECT_EQ(plan->kv_bytes, (plan->max_total_tokens + 1) * 1024);
}

// Of 100 MiB 80 are its part of what it has in common with other ranks of its instance, and all else that is its own.
TEST(MemoryPlanTest, CountsItsPartOfWeightsThatRanksHaveInCommon) {
  models::ModelInfo divided = model();
  divided.own_weight_bytes = 80 * kMiB;
  const auto plan =
      plan_memory(options({"--mem-fraction-static", "0.25"}), divided, {.limit_bytes = 1600 * kMiB, .host_ranks = 2});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->max_total_tokens, (1600 / 2 / 4 - 80) * 1024);
  EXPECT_EQ(plan->weight_bytes, 80 * kMiB);
}

TEST(MemoryPlanTest, IsNoLargerThanTheRunningRequestsCanUse) {
  const auto plan = plan_memory(options({"--max-running-requests", "3"}), model(), {.limit_bytes = 1'000'000 * kMiB});
  EXPECT_EQ(plan->max_total_tokens, 3 * 2048);
  EXPECT_EQ(plan->max_running_requests, 3);
  EXPECT_EQ(plan->max_req_len, 2047);
}

TEST(MemoryPlanTest, OneRunningRequestHasItsWholeContext) {
  const auto plan = [](const char* page, int64_t context) {
    models::ModelInfo m = model();
    m.context_length = context;
    return plan_memory(options({"--max-running-requests", "1", "--page-size", page}), m,
                       {.limit_bytes = 1'000'000 * kMiB});
  };
  EXPECT_EQ(plan("1", 2048)->max_total_tokens, 2049);
  EXPECT_EQ(plan("64", 2048)->max_total_tokens, 2048 + 64);
  EXPECT_EQ(plan("64", 2000)->max_total_tokens, 2048 + 64);
  const auto small = plan("1", 24);
  ASSERT_TRUE(small.ok()) << small.error().message;
  EXPECT_EQ(small->max_req_len, 23);
}

TEST(MemoryPlanTest, WhatAnswersMayKeepIsAQuarterOfWhatIsLeftWithinBounds) {
  const auto flags = options({"--max-total-tokens", "1000"});
  const auto answers = [&](int64_t limit) {
    const auto plan = plan_memory(flags, model(), {.limit_bytes = limit});
    EXPECT_TRUE(plan.ok());
    return std::pair(plan->answer_bytes, (limit - plan->total_bytes()) / 4);
  };
  const auto [some, quarter] = answers(600 * kMiB);
  EXPECT_EQ(some, quarter);
  EXPECT_GT(some, 100 * kMiB);
  EXPECT_EQ(answers(10'000 * kMiB).first, 256 * kMiB);
  const auto tight = plan_memory(options({"--mem-fraction-static", "0.98"}), model(), {.limit_bytes = 600 * kMiB});
  ASSERT_TRUE(tight.ok()) << tight.error().message;
  EXPECT_EQ(tight->answer_bytes, 8 * kMiB);
}

TEST(MemoryPlanTest, MaxTotalTokensOnlyLowersThePool) {
  const MemoryFacts facts{.limit_bytes = 1000 * kMiB};
  const int64_t free_choice = plan_memory(options(), model(), facts)->max_total_tokens;
  EXPECT_EQ(plan_memory(options({"--max-total-tokens", "1000"}), model(), facts)->max_total_tokens, 1000);
  EXPECT_EQ(plan_memory(options({"--max-total-tokens", "100000000"}), model(), facts)->max_total_tokens, free_choice);
  const auto small = plan_memory(options({"--max-total-tokens", "100"}), model(), facts);
  EXPECT_EQ(small->max_running_requests, 50);
  EXPECT_EQ(small->max_req_len, 99);
}

TEST(MemoryPlanTest, TooLittleMemoryIsAnErrorWithTheFigures) {
  const auto plan = plan_memory(options(), model(), {.limit_bytes = 150 * kMiB});
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().code, ErrorCode::kExhausted);
  EXPECT_NE(plan.error().message.find("100 MiB of weights"), std::string::npos) << plan.error().message;
}

// All that a rank will ever take is known at its start, and what does not fit is refused then.
TEST(MemoryPlanTest, WhatIsNeitherWeightsNorKvCountsTowardsTheLimit) {
  models::ModelInfo wide = model();
  wide.buffer_bytes = 300 * kMiB;
  const auto flags = options({"--mem-fraction-static", "0.5", "--max-running-requests", "8"});
  MemoryFacts facts{.limit_bytes = 1000 * kMiB, .program_bytes = 20 * kMiB, .slot_tables = 2};
  const auto plan = plan_memory(flags, wide, facts);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->table_bytes, 2 * 8 * 2047 * 4);
  EXPECT_EQ(plan->total_bytes(), 100 * kMiB + plan->kv_bytes + 300 * kMiB + plan->table_bytes + plan->program_bytes);
  EXPECT_GT(plan->program_bytes, 20 * kMiB) << "with what it takes of its own later";
  wide.buffer_bytes = 900 * kMiB;
  const auto refused = plan_memory(flags, wide, facts);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kExhausted);
  EXPECT_NE(refused.error().message.find("of 1000 MiB that it may: 100 of weights, 16 of KV cache, 0 of states, 900 of "
                                         "buffers (--chunked-prefill-size)"),
            std::string::npos)
      << refused.error().message;
  // A copy of the weights that ranks share is taken once.
  facts = {.limit_bytes = 2100 * kMiB, .host_ranks = 2, .shared_weights = true};
  EXPECT_TRUE(plan_memory(flags, wide, facts).ok());
  facts.shared_weights = false;
  EXPECT_TRUE(plan_memory(flags, wide, facts).ok());
  facts.limit_bytes = 2000 * kMiB;
  EXPECT_FALSE(plan_memory(flags, wide, facts).ok());
}

TEST(MemoryPlanTest, StatesOfSequencesTakeHalfOfTheRoomAtMostAndBoundTheRequests) {
  models::ModelInfo hybrid = model();
  hybrid.state_bytes_per_sequence = 10 * kMiB;
  const auto flags = options({"--mem-fraction-static", "0.5", "--max-running-requests", "64"});
  // 1000 MiB, less the weights: 900 for sequences, of which at most 450 are states.
  const auto plan = plan_memory(flags, hybrid, {.limit_bytes = 2000 * kMiB});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->max_running_requests, 30);
  EXPECT_EQ(plan->kept_states, 15);
  EXPECT_EQ(plan->state_bytes, 450 * kMiB);
  EXPECT_EQ(plan->max_total_tokens, 30 * 2048);
  EXPECT_LE(plan->state_bytes + plan->kv_bytes, 900 * kMiB);
  const auto unshared = options({"--mem-fraction-static", "0.5", "--disable-radix-cache"});
  EXPECT_EQ(plan_memory(unshared, hybrid, {.limit_bytes = 2000 * kMiB})->max_running_requests, 45);
  EXPECT_EQ(plan_memory(unshared, hybrid, {.limit_bytes = 2000 * kMiB})->kept_states, 0);
  // With room for all of them the pool gets the rest.
  EXPECT_EQ(plan_memory(flags, hybrid, {.limit_bytes = 100'000 * kMiB})->max_running_requests, 64);
  EXPECT_EQ(plan_memory(flags, hybrid, {.limit_bytes = 100'000 * kMiB})->kept_states, 128);
  const auto none = plan_memory(flags, hybrid, {.limit_bytes = 210 * kMiB});
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("10 MiB of states of 1 requests"), std::string::npos) << none.error().message;
}

TEST(MemoryPlanTest, AStepHoldsAChunkAndOneTokenOfEveryRunningRequest) {
  EXPECT_EQ(plan_steps(options()).chunk, 512);
  EXPECT_EQ(plan_steps(options({"--chunked-prefill-size", "-1", "--max-prefill-tokens", "4000"})).chunk, 4000);
  const auto wide = plan_steps(options({"--chunked-prefill-size", "16", "--max-running-requests", "64"}));
  EXPECT_EQ(wide.max_step_tokens, 64);
  EXPECT_EQ(plan_steps(options({"--enable-mixed-chunk", "--max-running-requests", "64"})).max_step_tokens, 512 + 64);
}

TEST(MemoryPlanTest, ThePoolHasWholePagesAndADummyPage) {
  const auto flags = options({"--page-size", "64", "--max-total-tokens", "1000"});
  const auto plan = plan_memory(flags, model(), {.limit_bytes = 1000 * kMiB});
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->max_total_tokens, 960);
  EXPECT_EQ(plan->kv_bytes, (960 + 64) * 1024);
  EXPECT_FALSE(
      plan_memory(options({"--page-size", "1024", "--max-total-tokens", "1500"}), model(), {.limit_bytes = 1000 * kMiB})
          .ok());
}

TEST(MemoryPlanTest, ThisProcessTakesMemory) {
  EXPECT_GT(resident_bytes(), 1 * kMiB);
  EXPECT_LT(resident_bytes(), memory_limit_bytes());
}

}  // namespace
}  // namespace sluice::engine
