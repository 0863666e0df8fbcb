// What DeepSeek's and Moonshot's published config.json files say, and what is refused of them.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "models/deepseek_v2.h"
#include "models/deepseek_v3.h"

namespace sluice::models {
namespace {

using Json = nlohmann::json;

const Json kV2 = Json::parse(R"({
  "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001, "ep_size": 1, "first_k_dense_replace": 1,
  "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 12288,
  "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2", "moe_intermediate_size": 1536,
  "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 160, "n_shared_experts": 2, "norm_topk_prob": false,
  "num_attention_heads": 128, "num_experts_per_tok": 6, "num_hidden_layers": 60, "num_key_value_heads": 128,
  "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                   "original_max_position_embeddings": 4096, "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax", "seq_aux": true,
  "tie_word_embeddings": false, "topk_group": 3, "topk_method": "group_limited_greedy", "torch_dtype": "bfloat16",
  "use_cache": true, "v_head_dim": 128, "vocab_size": 102400})");

// What its config.json has other than V2's.
const Json kV2Lite = Json::parse(R"({
  "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64,
  "num_attention_heads": 16, "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": null,
  "rope_scaling": {"mscale": 0.707, "mscale_all_dim": 0.707}, "routed_scaling_factor": 1.0, "topk_group": 1,
  "topk_method": "greedy"})");

const Json kV3 = Json::parse(R"({
  "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1,
  "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
  "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
  "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
  "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
  "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
  "qk_rope_head_dim": 64,
  "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                          "weight_block_size": [128, 128]},
  "rms_norm_eps": 1e-06,
  "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                   "original_max_position_embeddings": 4096, "type": "yarn"},
  "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
  "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "use_cache": true, "v_head_dim": 128,
  "vocab_size": 129280})");

// What its config.json has other than V3's.
const Json kKimiK2 = Json::parse(R"({
  "bos_token_id": 163584, "eos_token_id": 163585, "first_k_dense_replace": 1, "max_position_embeddings": 131072,
  "model_type": "kimi_k2", "n_group": 1, "n_routed_experts": 384, "num_attention_heads": 64,
  "num_key_value_heads": 64, "num_nextn_predict_layers": 0,
  "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0}, "rope_theta": 50000.0,
  "routed_scaling_factor": 2.827, "topk_group": 1, "vocab_size": 163840})");

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
  const ModelConfig config = read(kV2);
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
  const ModelConfig config = read(changed(kV2, kV2Lite));
  EXPECT_EQ(config.mla->q_lora_rank, 0);
  EXPECT_EQ(config.moe->groups, 1);
  EXPECT_NEAR(config.rope.score_scale, std::pow(1 + 0.0707 * std::log(40), 2), 1e-12);
  EXPECT_EQ(config.rope.angle_scale, 1);
}

TEST(DeepSeekConfigTest, V3ChoosesBySigmoidsWithABiasAndIsStoredInFp8) {
  const ModelConfig config = read(kV3);
  EXPECT_TRUE(config.fp8);
  EXPECT_EQ(config.moe->score, kernels::RouterScore::kSigmoid);
  EXPECT_EQ(config.moe->group_score, kernels::GroupScore::kBestTwo);
  EXPECT_TRUE(config.moe->renormalise && config.moe->correction_bias);
  EXPECT_EQ(config.moe->scale, 2.5);
  EXPECT_EQ(std::count(config.moe->sparse.begin(), config.moe->sparse.end(), false), 3);
}

TEST(DeepSeekConfigTest, KimiK2IsReadByEitherModelType) {
  const Json published = changed(kV3, kKimiK2);
  for (const char* type : {"kimi_k2", "deepseek_v3"}) {
    const ModelConfig config = read(changed(published, {{"model_type", type}}));
    EXPECT_EQ(config.model_type, type);
    EXPECT_EQ(config.moe->experts, 384);
    EXPECT_EQ(config.moe->groups, 1);
    EXPECT_EQ(config.rope.theta, 50000);
  }
}

// The Hugging Face port leaves out what it has no choice of and names the rotary fields anew.
TEST(DeepSeekConfigTest, TheHuggingFacePortSaysTheSame) {
  const ModelConfig published = read(kV3);
  const ModelConfig port = read(changed(
      kV3, {{"scoring_func", nullptr},
            {"topk_method", nullptr},
            {"moe_layer_freq", nullptr},
            {"rope_interleave", true},
            {"head_dim", 64},
            {"rope_theta", nullptr},
            {"rope_scaling", nullptr},
            {"rope_parameters",
             changed(kV3["rope_scaling"], {{"type", nullptr}, {"rope_type", "yarn"}, {"rope_theta", 10000}})}}));
  EXPECT_EQ(port.head_dim, published.head_dim);
  EXPECT_EQ(port.moe->score, published.moe->score);
  EXPECT_EQ(inverse_frequencies(port), inverse_frequencies(published));
}

TEST(DeepSeekConfigTest, NamesWhatIsNotBuilt) {
  expect_has(refusal(kV3, {{"scoring_func", "softmax"}}), "scoring_func");
  expect_has(refusal(kV3, {{"topk_method", "greedy"}}), "topk_method");
  expect_has(refusal(kV2, {{"scoring_func", "sigmoid"}}), "scoring_func");
  expect_has(refusal(kV2, {{"topk_method", "noaux_tc"}}), "topk_method");
  expect_has(refusal(kV3, {{"attention_bias", true}}), "attention_bias");
  expect_has(refusal(kV3, {{"num_key_value_heads", 8}}), "num_key_value_heads");
  expect_has(refusal(kV3, {{"rope_interleave", false}}), "rope_interleave");
  expect_has(refusal(kV3, {{"kv_lora_rank", nullptr}}), "kv_lora_rank is missing");
  expect_has(refusal(kV3, {{"qk_rope_head_dim", 63}}), "63");
  expect_has(refusal(kV3, {{"kv_lora_rank", 1 << 20}}), "1048576");
  expect_has(refusal(kV3, {{"n_shared_experts", 1 << 20}}), "n_shared_experts");
}

// Engine reference, section 5.2: layers * (kv_lora_rank + qk_rope_head_dim) * bytes of an element.
TEST(DeepSeekKvTest, ATokenTakesItsLatentAndItsRotaryKeyInEveryLayer) {
  const auto bytes = [](const Json& published, auto make, kernels::DType dtype) {
    // What is kept does not depend on the experts, whose weights would take long to declare.
    const ModelConfig config = read(changed(published, {{"first_k_dense_replace", published["num_hidden_layers"]}}));
    const auto backend = kernels::make_backend("cpu", 1).value();
    WeightStore weights(*backend, dtype);
    return make(config, weights)->kv().bytes_per_token();
  };
  using kernels::DType;
  EXPECT_EQ(bytes(kV2, make_deepseek_v2, DType::kF32), 2 * 69'120u);
  EXPECT_EQ(bytes(changed(kV2, kV2Lite), make_deepseek_v2, DType::kF32), 2 * 31'104u);
  EXPECT_EQ(bytes(changed(kV3, kKimiK2), make_deepseek_v3, DType::kF32), 2 * 70'272u);
  if (kernels::best_dtype() == DType::kBf16) {
    EXPECT_EQ(bytes(kV3, make_deepseek_v3, DType::kBf16), 70'272u);
  }
}

}  // namespace
}  // namespace sluice::models
