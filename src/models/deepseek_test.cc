// What DeepSeek's and Moonshot's published config.json files say of routers and positions, and what is refused.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/kernels.h"
#include "models/config.h"

namespace sluice::models {
namespace {

using Json = nlohmann::json;

Json published(const std::string& name) {
  std::ifstream file(std::string(SLUICE_FIXTURES_DIR) + "/published-configs/" + name + ".json");
  return Json::parse(file);
}
Json changed(Json config, const Json& by) {
  config.merge_patch(by);
  return config;
}
ModelConfig read(const Json& config) {
  auto result = config_from_json(config, nullptr);
  EXPECT_TRUE(result.ok()) << result.error().message;
  return *result;
}
std::string refusal(const Json& config, const Json& by) {
  const auto result = config_from_json(changed(config, by), nullptr);
  return result.ok() ? "(accepted)" : result.error().message;
}
void expect_has(const std::string& text, std::string_view part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(DeepSeekConfigTest, V2ChoosesWithinItsBestGroupsAndScales) {
  const ModelConfig config = read(published("DeepSeek-V2"));
  EXPECT_EQ(config.mla->q_lora_rank, 1536);
  EXPECT_EQ(config.head_dim, 192);
  EXPECT_EQ(config.rotary_dim, 64);
  EXPECT_TRUE(config.rope.interleaved);
  EXPECT_EQ(config.moe->score, kernels::RouterScore::kSoftmax);
  EXPECT_EQ(config.moe->groups, 8);
  EXPECT_EQ(config.moe->kept_groups, 3);
  EXPECT_EQ(config.moe->group_score, kernels::GroupScore::kBest);
  EXPECT_EQ(config.moe->scale, 16);
  EXPECT_EQ(config.moe->shared_width, 2 * 1536);
  EXPECT_FALSE(config.moe->renormalise || config.moe->correction_bias);
  EXPECT_EQ(std::count(config.moe->sparse.begin(), config.moe->sparse.end(), true), 59);
  EXPECT_FALSE(config.moe->sparse[0]);
}

TEST(DeepSeekConfigTest, V2LiteHasPlainQueriesAndNoGroups) {
  const ModelConfig config = read(published("DeepSeek-V2-Lite"));
  EXPECT_EQ(config.mla->q_lora_rank, 0);
  EXPECT_EQ(config.moe->groups, 1);
  EXPECT_NEAR(config.rope.score_scale, std::pow(1 + 0.0707 * std::log(40), 2), 1e-12);
  EXPECT_EQ(config.rope.angle_scale, 1);
}

TEST(DeepSeekConfigTest, V3ChoosesBySigmoidsWithABiasAndIsStoredInFp8) {
  const ModelConfig config = read(published("DeepSeek-V3"));
  EXPECT_TRUE(config.fp8);
  EXPECT_EQ(config.moe->score, kernels::RouterScore::kSigmoid);
  EXPECT_EQ(config.moe->group_score, kernels::GroupScore::kBestTwo);
  EXPECT_TRUE(config.moe->renormalise && config.moe->correction_bias);
  EXPECT_EQ(config.moe->scale, 2.5);
  EXPECT_EQ(std::count(config.moe->sparse.begin(), config.moe->sparse.end(), false), 3);
}

TEST(DeepSeekConfigTest, KimiK2IsReadByEitherModelType) {
  const Json kimi = published("Kimi-K2-Instruct");
  for (const char* type : {"kimi_k2", "deepseek_v3"}) {
    const ModelConfig config = read(changed(kimi, {{"model_type", type}}));
    EXPECT_EQ(config.model_type, type);
    EXPECT_EQ(config.moe->experts, 384);
    EXPECT_EQ(config.moe->groups, 1);
    EXPECT_EQ(config.rope.theta, 50000);
  }
}

// The Hugging Face port leaves out what it has no choice of and names the rotary fields anew.
TEST(DeepSeekConfigTest, TheHuggingFacePortSaysTheSame) {
  const Json v3 = published("DeepSeek-V3");
  const ModelConfig own = read(v3);
  const ModelConfig port = read(
      changed(v3, {{"scoring_func", nullptr},
                   {"topk_method", nullptr},
                   {"moe_layer_freq", nullptr},
                   {"rope_interleave", true},
                   {"head_dim", 64},
                   {"rope_theta", nullptr},
                   {"rope_scaling", nullptr},
                   {"rope_parameters",
                    changed(v3["rope_scaling"], {{"type", nullptr}, {"rope_type", "yarn"}, {"rope_theta", 10000}})}}));
  EXPECT_EQ(port.head_dim, own.head_dim);
  EXPECT_EQ(port.moe->score, own.moe->score);
  EXPECT_EQ(inverse_frequencies(port), inverse_frequencies(own));
}

TEST(DeepSeekConfigTest, NamesWhatIsNotBuilt) {
  const Json v2 = published("DeepSeek-V2"), v3 = published("DeepSeek-V3");
  expect_has(refusal(v3, {{"scoring_func", "softmax"}}), "scoring_func");
  expect_has(refusal(v3, {{"topk_method", "greedy"}}), "topk_method");
  expect_has(refusal(v2, {{"scoring_func", "sigmoid"}}), "scoring_func");
  expect_has(refusal(v2, {{"topk_method", "noaux_tc"}}), "topk_method");
  expect_has(refusal(v3, {{"attention_bias", true}}), "attention_bias");
  expect_has(refusal(v3, {{"num_key_value_heads", 8}}), "num_key_value_heads");
  expect_has(refusal(v3, {{"rope_interleave", false}}), "rope_interleave");
  expect_has(refusal(v3, {{"kv_lora_rank", nullptr}}), "kv_lora_rank is missing");
  expect_has(refusal(v3, {{"qk_rope_head_dim", 63}}), "63");
  expect_has(refusal(v3, {{"kv_lora_rank", 1 << 20}}), "1048576");
  expect_has(refusal(v3, {{"n_shared_experts", 1 << 20}}), "n_shared_experts");
}

}  // namespace
}  // namespace sluice::models
