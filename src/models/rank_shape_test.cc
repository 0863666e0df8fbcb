#include "models/rank_shape.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "models/runner.h"
#include "models/sharding.h"

namespace sluice::models {
namespace {

using parallel::Layout;

ModelConfig published(const std::string& name) {
  std::ifstream file(std::string(SLUICE_FIXTURES_DIR) + "/published-configs/" + name + ".json");
  return config_from_json(nlohmann::json::parse(file), nullptr).value();
}

RankShape shape(const std::string& name, const Layout& layout) {
  const ModelConfig config = published(name);
  EXPECT_TRUE(check_sharding(config, layout).ok());
  return shape_of_rank(config, layout, kernels::DType::kBf16, *dummy_weights(config)).value();
}

// Of a token on one of 8 GPUs, and of one copy.
TEST(RankShapeTest, KeysAndValuesOfATokenAreThoseOfTheReference) {
  struct Row {
    const char* model;
    int64_t one, tp8;
  };
  for (const Row& row :
       {Row{"DeepSeek-V3", 70'272, 70'272}, Row{"DeepSeek-R1", 70'272, 70'272}, Row{"Kimi-K2-Instruct", 70'272, 70'272},
        Row{"DeepSeek-V2", 69'120, 69'120}, Row{"DeepSeek-V2-Lite", 31'104, 31'104},
        Row{"Qwen3-235B-A22B", 192'512, 48'128}, Row{"Qwen3-30B-A3B", 98'304, 24'576},
        Row{"Llama-3.1-8B-Instruct", 131'072, 16'384}, Row{"Llama-3.1-70B-Instruct", 327'680, 40'960},
        Row{"MiniMax-M2", 253'952, 31'744}, Row{"MiniMax-Text-01", 40'960, 5'120}}) {
    EXPECT_EQ(shape(row.model, {}).kv_bytes_per_token, row.one) << row.model;
    EXPECT_EQ(shape(row.model, {.tp_size = 8}).kv_bytes_per_token, row.tp8) << row.model;
  }
  EXPECT_EQ(shape("MiniMax-Text-01", {.tp_size = 8}).state_bytes_per_sequence, 35 << 20);
  // Grouped-query attention gains nothing beyond tp / key heads.
  EXPECT_EQ(shape("Qwen3-235B-A22B", {.tp_size = 8, .dp_size = 2}).kv_bytes_per_token, 48'128);
  EXPECT_EQ(shape("Qwen3-235B-A22B", {.tp_size = 8, .dp_size = 4}).kv_bytes_per_token, 96'256);
}

// An estimate at one byte per parameter, without scales.
TEST(RankShapeTest, WeightsOfDeepSeekV3AreThoseOfTheReference) {
  constexpr double kGiB = 1 << 30;
  const auto gib = [&](const Layout& layout) {
    return static_cast<double>(shape("DeepSeek-V3", layout).weight_bytes()) / kGiB;
  };
  const auto within = [](double got, double want) { EXPECT_NEAR(got / want, 1, 0.01) << got << " GiB, not " << want; };
  within(gib({.tp_size = 8}), 79.5);
  within(gib({.tp_size = 8, .dp_size = 2}), 81.2);
  within(gib({.tp_size = 8, .dp_size = 4}), 84.5);
  within(gib({.tp_size = 8, .dp_size = 8}), 91.2);
  within(gib({.tp_size = 8,
              .dp_size = 8,
              .ep_size = 8,
              .a2a = parallel::MoeAllToAll::kDeepEp,
              .dense_data_parallel = true,
              .dp_lm_head = true}),
         95.8);
  const RankShape ep = shape("DeepSeek-V3", {.tp_rank = 3, .tp_size = 8, .dp_size = 8, .ep_size = 8});
  EXPECT_NEAR(static_cast<double>(ep.experts_weights.values), 653.9e9 / 8, 0.05e9);
  EXPECT_EQ(ep.experts, (parallel::Slice{96, 32}));
  EXPECT_EQ(ep.heads, (parallel::Slice{0, 128}));
  EXPECT_EQ(ep.head, (parallel::Slice{3 * 16'160, 16'160}));
  EXPECT_NEAR(static_cast<double>(ep.attention.values), 11.41e9 + 61 * 16.8e6 / 2, 0.05e9);  // kv_b's keys twice
}

TEST(RankShapeTest, ThereAreNoCopiesOfExpertsThatNoLayerHas) {
  ModelConfig config = published("DeepSeek-V3");
  const Layout layout{.tp_size = 8, .dp_size = 8, .ep_size = 8, .a2a = parallel::MoeAllToAll::kDeepEp};
  config.moe->sparse.assign(config.moe->sparse.size(), false);
  EXPECT_TRUE(check_sharding(config, layout).ok());
  const auto refused = check_sharding(config, layout, {.moves = true});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message, "--enable-eplb: no layer of the model has experts");
}

TEST(RankShapeTest, CopiesOfExpertsTakeWhatExpertsTake) {
  const ModelConfig config = published("DeepSeek-V3");
  const Layout layout{.tp_rank = 2, .tp_size = 8, .dp_size = 8, .ep_size = 8, .a2a = parallel::MoeAllToAll::kDeepEp};
  const auto map = check_sharding(config, layout, {.redundant = 32}).value();
  ASSERT_TRUE(map);
  const RankShape once = shape("DeepSeek-V3", layout);
  const RankShape copied = shape_of_rank(config, layout, kernels::DType::kBf16, *dummy_weights(config), {},
                                         /*rounded=*/false, &*map)
                               .value();
  EXPECT_EQ(copied.experts, (parallel::Slice{72, 36}));
  EXPECT_EQ(copied.experts_weights.bytes * 32, once.experts_weights.bytes * 36);
  EXPECT_EQ(copied.weight_bytes() - once.weight_bytes(), copied.experts_weights.bytes - once.experts_weights.bytes);
}

TEST(RankShapeTest, RanksTogetherHaveEveryParameterOnce) {
  for (const std::string name : {"Llama-3.1-70B-Instruct", "Qwen3-30B-A3B", "MiniMax-M2"}) {
    const RankShape whole = shape(name, {});
    int64_t attention = 0, experts = 0, output = 0, embedding = 0;
    for (int64_t rank = 0; rank < 4; ++rank) {
      const RankShape part = shape(name, {.tp_rank = rank, .tp_size = 4, .ep_size = whole.experts.count > 0 ? 2 : 1});
      attention += part.attention.bytes;
      experts += part.experts_weights.bytes;
      output += part.output.bytes;
      embedding += part.embedding.bytes;
    }
    EXPECT_NEAR(static_cast<double>(attention) / static_cast<double>(whole.attention.bytes), 1, 1e-4) << name;
    EXPECT_EQ(experts, whole.experts_weights.bytes) << name;
    EXPECT_EQ(output, whole.output.bytes) << name;
    EXPECT_EQ(embedding, whole.embedding.bytes) << name;
  }
}

// Its buffers, and how its experts are reached, are no part of what it holds.
TEST(RankShapeTest, IsTheSameBesideItsBuffers) {
  const ModelConfig config = published("DeepSeek-V3");
  const Layout layout{.tp_rank = 2, .tp_size = 8, .dp_size = 8, .ep_size = 8, .a2a = parallel::MoeAllToAll::kDeepEp};
  const auto source = dummy_weights(config);
  const auto fp8 = kernels::DType::kF8E4M3;
  const RankShape alone = shape_of_rank(config, layout, kernels::DType::kBf16, *source, fp8).value();
  for (const auto mode : {moe::DeepEpMode::kNormal, moe::DeepEpMode::kLowLatency}) {
    const StepShape step{.max_tokens = 64, .max_seqs = 8, .deepep = {.mode = mode, .capacity = 16}};
    const RankNeeds needs = needs_of_rank(config, layout, kernels::DType::kBf16, *source, step, fp8).value();
    EXPECT_GT(needs.buffers.bytes, 0);
    EXPECT_EQ(needs.shape.weight_bytes(), alone.weight_bytes());
    EXPECT_EQ(needs.shape.experts, alone.experts);
    EXPECT_EQ(needs.shape.kv_bytes_per_token, alone.kv_bytes_per_token);
  }
}

// What a rank of the real thing maps differs by what the device adds when it packs.
TEST(RankShapeTest, IsWhatARunnerMapsButForPacking) {
  const std::string folder = std::string(SLUICE_FIXTURES_DIR) + "/tiny-deepseek-v3";
  const auto runner = load_runner({.model_path = folder, .dtype = "float32"});
  ASSERT_TRUE(runner.ok()) << runner.error().message;
  const ModelConfig config = load_config(folder, "").value();
  const RankShape counted = shape_of_rank(config, {}, kernels::DType::kF32, *dummy_weights(config)).value();
  EXPECT_EQ(static_cast<size_t>(counted.kv_bytes_per_token), (*runner)->info().kv_bytes_per_token);
  EXPECT_LE(static_cast<size_t>(counted.weight_bytes()), (*runner)->info().weight_bytes);
  EXPECT_GE(static_cast<double>(counted.weight_bytes()), 0.8 * static_cast<double>((*runner)->info().weight_bytes));
}

}  // namespace
}  // namespace sluice::models
