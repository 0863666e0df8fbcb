#include "models/config_difference.h"

#include <gtest/gtest.h>

#include <functional>

namespace sluice::models {
namespace {

// With each part that a model may have, though no family has them all.
ModelConfig everything() {
  ModelConfig config;
  config.architectures = {"LlamaForCausalLM"};
  config.num_layers = 2;
  config.rope.divisors = {1, 2};
  config.mla.emplace();
  config.moe.emplace().sparse = {false, true};
  config.lightning.emplace().layers = {true, false};
  return config;
}

TEST(ConfigDifferenceTest, EachMemberThatIsComputedWithIsNamed) {
  const struct {
    std::string_view says;
    std::function<void(ModelConfig&)> change;
  } cases[] = {
      {"architecture is Qwen2ForCausalLM", [](ModelConfig& c) { c.architectures = {"Qwen2ForCausalLM"}; }},
      {"vocab_size is 7", [](ModelConfig& c) { c.vocab_size = 7; }},
      {"hidden_size is 7", [](ModelConfig& c) { c.hidden_size = 7; }},
      {"num_hidden_layers is 7", [](ModelConfig& c) { c.num_layers = 7; }},
      {"num_attention_heads is 7", [](ModelConfig& c) { c.num_heads = 7; }},
      {"num_key_value_heads is 7", [](ModelConfig& c) { c.num_kv_heads = 7; }},
      {"head_dim is 7", [](ModelConfig& c) { c.head_dim = 7; }},
      {"rotary dimension is 7", [](ModelConfig& c) { c.rotary_dim = 7; }},
      {"intermediate_size is 7", [](ModelConfig& c) { c.intermediate_size = 7; }},
      {"rms_norm_eps is 0.5", [](ModelConfig& c) { c.rms_norm_eps = 0.5; }},
      {"rope_theta is 7, not 10000", [](ModelConfig& c) { c.rope.theta = 7; }},
      {"RoPE scaling is yarn, not none", [](ModelConfig& c) { c.rope.scaling = RopeScaling::kYarn; }},
      {"RoPE scaling factor is 7", [](ModelConfig& c) { c.rope.factor = 7; }},
      {"original_max_position_embeddings is 7", [](ModelConfig& c) { c.rope.original_max_position = 7; }},
      {"low_freq_factor is 7", [](ModelConfig& c) { c.rope.low_freq_factor = 7; }},
      {"high_freq_factor is 7", [](ModelConfig& c) { c.rope.high_freq_factor = 7; }},
      {"beta_fast is 7", [](ModelConfig& c) { c.rope.beta_fast = 7; }},
      {"beta_slow is 7", [](ModelConfig& c) { c.rope.beta_slow = 7; }},
      {"(mscale) is 7", [](ModelConfig& c) { c.rope.angle_scale = 7; }},
      {"(mscale_all_dim) is 7", [](ModelConfig& c) { c.rope.score_scale = 7; }},
      {"rotary frequencies differ at 1: 7, not 2", [](ModelConfig& c) { c.rope.divisors[1] = 7; }},
      {"rotary frequencies are 0, not 2", [](ModelConfig& c) { c.rope.divisors.clear(); }},
      {"(interleaved) is true", [](ModelConfig& c) { c.rope.interleaved = true; }},
      {"tie_word_embeddings is true", [](ModelConfig& c) { c.tie_embeddings = true; }},
      {"attention_bias is true", [](ModelConfig& c) { c.qkv_bias = true; }},
      {"queries and keys is of each head, not none", [](ModelConfig& c) { c.qk_norm = QkNorm::kEachHead; }},
      {"it has no latent attention", [](ModelConfig& c) { c.mla.reset(); }},
      {"q_lora_rank is 7", [](ModelConfig& c) { c.mla->q_lora_rank = 7; }},
      {"kv_lora_rank is 7", [](ModelConfig& c) { c.mla->kv_lora_rank = 7; }},
      {"qk_nope_head_dim is 7", [](ModelConfig& c) { c.mla->qk_nope_head_dim = 7; }},
      {"v_head_dim is 7", [](ModelConfig& c) { c.mla->v_head_dim = 7; }},
      {"up-projection in two tensors is true", [](ModelConfig& c) { c.mla->split_up = true; }},
      {"it has no mixture of experts", [](ModelConfig& c) { c.moe.reset(); }},
      {"number of experts is 7", [](ModelConfig& c) { c.moe->experts = 7; }},
      {"experts per token is 7", [](ModelConfig& c) { c.moe->top_k = 7; }},
      {"expert FFN width is 7", [](ModelConfig& c) { c.moe->expert_width = 7; }},
      {"shared expert FFN width is 7", [](ModelConfig& c) { c.moe->shared_width = 7; }},
      {"router's score is sigmoid, not softmax", [](ModelConfig& c) { c.moe->score = kernels::RouterScore::kSigmoid; }},
      {"correction bias is true", [](ModelConfig& c) { c.moe->correction_bias = true; }},
      {"number of expert groups is 7", [](ModelConfig& c) { c.moe->groups = 7; }},
      {"number of kept expert groups is 7", [](ModelConfig& c) { c.moe->kept_groups = 7; }},
      {"expert groups is the best two", [](ModelConfig& c) { c.moe->group_score = kernels::GroupScore::kBestTwo; }},
      {"norm_topk_prob is true", [](ModelConfig& c) { c.moe->renormalise = true; }},
      {"routed_scaling_factor is 7", [](ModelConfig& c) { c.moe->scale = 7; }},
      {"layers with experts differ at 0: true",
       [](ModelConfig& c) {
         c.moe->sparse = {true, true};
       }},
      {"it has no lightning attention", [](ModelConfig& c) { c.lightning.reset(); }},
      {"lightning attention differ at 1: true",
       [](ModelConfig& c) {
         c.lightning->layers = {true, true};
       }},
      {"linear_attn_alpha_factor is 7", [](ModelConfig& c) { c.lightning->lightning.alpha = 7; }},
      {"full_attn_beta_factor is 7", [](ModelConfig& c) { c.lightning->softmax.beta = 7; }},
      {"mlp_alpha_factor is 7", [](ModelConfig& c) { c.lightning->ffn.alpha = 7; }},
      {"quantisation to FP8 is true", [](ModelConfig& c) { c.fp8 = true; }},
  };
  const ModelConfig own = everything();
  for (const auto& c : cases) {
    ModelConfig other = own;
    c.change(other);
    const std::string text = difference(own, other);
    EXPECT_NE(text.find(c.says), std::string::npos) << "'" << text << "' for " << c.says;
  }
}

TEST(ConfigDifferenceTest, WhatClientsSeeAloneMayDiffer) {
  const ModelConfig own = everything();
  ModelConfig other = own;
  other.model_type = "another";
  other.max_position = 1 << 17;
  other.labels = {"good", "bad"};
  other.eos_token_ids = {1, 2};
  other.bos_token_id = 3;
  other.temperature = other.top_p = other.min_p = other.repetition_penalty = 0.5;
  other.top_k = 5;
  EXPECT_EQ(difference(own, other), "");
}

}  // namespace
}  // namespace sluice::models
