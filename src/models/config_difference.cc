#include "models/config_difference.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

namespace sluice::models {
namespace {

std::string_view name_of(RopeScaling scaling) {
  constexpr std::string_view kNames[] = {"none", "linear", "llama3", "yarn"};
  return kNames[static_cast<size_t>(scaling)];
}

std::string_view name_of(QkNorm norm) {
  constexpr std::string_view kNames[] = {"none", "of each head", "of all heads"};
  return kNames[static_cast<size_t>(norm)];
}

std::string_view name_of(kernels::RouterScore score) {
  return score == kernels::RouterScore::kSigmoid ? "sigmoid" : "softmax";
}

std::string_view name_of(kernels::GroupScore score) {
  return score == kernels::GroupScore::kBestTwo ? "the best two" : "the best";
}

// Keeps the first of the values that differ.
class Comparison {
 public:
  template <class T>
  void value(std::string_view name, const T& own, const T& other) {
    if (!found_.empty() || own == other) return;
    if constexpr (std::is_enum_v<T>) {
      found_ = fmt::format("its {} is {}, not {}", name, name_of(other), name_of(own));
    } else {
      found_ = fmt::format("its {} is {}, not {}", name, other, own);
    }
  }
  // Lists with a value for each layer or frequency.
  template <class T>
  void list(std::string_view name, const std::vector<T>& own, const std::vector<T>& other) {
    if (!found_.empty() || own == other) return;
    if (own.size() != other.size()) {
      found_ = fmt::format("its {} are {}, not {}", name, other.size(), own.size());
      return;
    }
    const auto at = std::mismatch(own.begin(), own.end(), other.begin());
    const T was = *at.first, is = *at.second;
    found_ = fmt::format("its {} differ at {}: {}, not {}", name, at.first - own.begin(), is, was);
  }
  // Parts that a model may have or not; what is in them is left to `members`.
  template <class T, class Members>
  void part(std::string_view name, const std::optional<T>& own, const std::optional<T>& other, Members members) {
    if (!found_.empty() || own == other) return;
    if (own && other) {
      members(*own, *other);
    } else {
      found_ = fmt::format("it has {} {}", other ? "a" : "no", name);
    }
  }
  std::string take() { return std::move(found_); }

 private:
  std::string found_;
};

void compare(const RopeConfig& own, const RopeConfig& other, Comparison& to) {
  to.value("rope_theta", own.theta, other.theta);
  to.value("RoPE scaling", own.scaling, other.scaling);
  to.value("RoPE scaling factor", own.factor, other.factor);
  to.value("original_max_position_embeddings", own.original_max_position, other.original_max_position);
  to.value("low_freq_factor", own.low_freq_factor, other.low_freq_factor);
  to.value("high_freq_factor", own.high_freq_factor, other.high_freq_factor);
  to.value("beta_fast", own.beta_fast, other.beta_fast);
  to.value("beta_slow", own.beta_slow, other.beta_slow);
  to.value("factor of attention (mscale)", own.angle_scale, other.angle_scale);
  to.value("factor of scores (mscale_all_dim)", own.score_scale, other.score_scale);
  to.list("divisors of rotary frequencies", own.divisors, other.divisors);
  to.value("order of rotary pairs (interleaved)", own.interleaved, other.interleaved);
}

void compare(const MlaConfig& own, const MlaConfig& other, Comparison& to) {
  to.value("q_lora_rank", own.q_lora_rank, other.q_lora_rank);
  to.value("kv_lora_rank", own.kv_lora_rank, other.kv_lora_rank);
  to.value("qk_nope_head_dim", own.qk_nope_head_dim, other.qk_nope_head_dim);
  to.value("v_head_dim", own.v_head_dim, other.v_head_dim);
  to.value("up-projection in two tensors", own.split_up, other.split_up);
}

void compare(const MoeConfig& own, const MoeConfig& other, Comparison& to) {
  to.value("number of experts", own.experts, other.experts);
  to.value("experts per token", own.top_k, other.top_k);
  to.value("expert FFN width", own.expert_width, other.expert_width);
  to.value("shared expert FFN width", own.shared_width, other.shared_width);
  to.value("router's score", own.score, other.score);
  to.value("router's correction bias", own.correction_bias, other.correction_bias);
  to.value("number of expert groups", own.groups, other.groups);
  to.value("number of kept expert groups", own.kept_groups, other.kept_groups);
  to.value("score of expert groups", own.group_score, other.group_score);
  to.value("norm_topk_prob", own.renormalise, other.renormalise);
  to.value("routed_scaling_factor", own.scale, other.scale);
  to.list("layers with experts", own.sparse, other.sparse);
}

void compare(std::string_view name, const ResidualScale& own, const ResidualScale& other, Comparison& to) {
  to.value(fmt::format("{}_alpha_factor", name), own.alpha, other.alpha);
  to.value(fmt::format("{}_beta_factor", name), own.beta, other.beta);
}

void compare(const LightningConfig& own, const LightningConfig& other, Comparison& to) {
  to.list("layers of lightning attention", own.layers, other.layers);
  compare("linear_attn", own.lightning, other.lightning, to);
  compare("full_attn", own.softmax, other.softmax, to);
  compare("mlp", own.ffn, other.ffn, to);
}

// With what clients see alone as `own` has it.
ModelConfig as_computed(const ModelConfig& own, ModelConfig other) {
  other.model_type = own.model_type;
  other.max_position = own.max_position;
  other.labels = own.labels;
  other.eos_token_ids = own.eos_token_ids;
  other.bos_token_id = own.bos_token_id;
  other.temperature = own.temperature;
  other.top_p = own.top_p;
  other.min_p = own.min_p;
  other.repetition_penalty = own.repetition_penalty;
  other.top_k = own.top_k;
  return other;
}

}  // namespace

std::string difference(const ModelConfig& own, const ModelConfig& other) {
  Comparison found;
  const auto members = [&](const auto& a, const auto& b) { compare(a, b, found); };
  found.value("architecture", fmt::format("{}", fmt::join(own.architectures, ",")),
              fmt::format("{}", fmt::join(other.architectures, ",")));
  found.value("vocab_size", own.vocab_size, other.vocab_size);
  found.value("hidden_size", own.hidden_size, other.hidden_size);
  found.value("num_hidden_layers", own.num_layers, other.num_layers);
  found.value("num_attention_heads", own.num_heads, other.num_heads);
  found.value("num_key_value_heads", own.num_kv_heads, other.num_kv_heads);
  found.value("head_dim", own.head_dim, other.head_dim);
  found.value("rotary dimension", own.rotary_dim, other.rotary_dim);
  found.value("intermediate_size", own.intermediate_size, other.intermediate_size);
  found.value("rms_norm_eps", own.rms_norm_eps, other.rms_norm_eps);
  compare(own.rope, other.rope, found);
  found.value("tie_word_embeddings", own.tie_embeddings, other.tie_embeddings);
  found.value("attention_bias", own.qkv_bias, other.qkv_bias);
  found.value("norm of queries and keys", own.qk_norm, other.qk_norm);
  found.part("latent attention", own.mla, other.mla, members);
  found.part("mixture of experts", own.moe, other.moe, members);
  found.part("lightning attention", own.lightning, other.lightning, members);
  found.value("quantisation to FP8", own.fp8, other.fp8);
  std::string text = found.take();
  // A member that is newer than the list above is told apart all the same.
  if (text.empty() && as_computed(own, other) != own) text = "its configuration differs";
  return text;
}

}  // namespace sluice::models
