// A model's configuration, from config.json of a Hugging Face folder or from GGUF metadata.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/kernels.h"
#include "tensor/gguf.h"

namespace sluice::models {

enum class RopeScaling : uint8_t { kNone, kLinear, kLlama3, kYarn };

struct RopeConfig {
  double theta = 10000;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1;
  double original_max_position = 8192;  // llama3 and YaRN
  // llama3 only.
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  // YaRN only (Peng et al. 2023): what turns more often than beta_fast over the original length is kept, what turns
  // less often than beta_slow is stretched.
  double beta_fast = 32;
  double beta_slow = 1;
  double angle_scale = 1;  // of cos and sin: the paper's attention factor
  double score_scale = 1;  // of the scores, where a family applies it (DeepSeek's mscale_all_dim)
  // What each frequency is divided by, beside the scaling; GGUF files of Llama 3.1 and later say it so. Empty: by 1.
  std::vector<float> divisors;
  bool interleaved = false;  // GGUF's Llama files store query and key rows for pairs (2i, 2i+1)

  bool operator==(const RopeConfig&) const = default;
};

// RMSNorm of queries and keys before they are rotated.
enum class QkNorm : uint8_t {
  kNone,
  kEachHead,  // one weight of head_dim for all query heads, one for all key heads
  kAllHeads,  // over all heads of a token together
};

// Multi-head latent attention (DeepSeek-V2 2024, section 2.1). The rotary values of a head are ModelConfig::rotary_dim.
struct MlaConfig {
  int64_t q_lora_rank = 0;  // 0: queries are not compressed
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t v_head_dim = 0;
  // The latent's up-projections to keys, transposed, and to values are tensors of their own, as in newer GGUF files.
  bool split_up = false;

  bool operator==(const MlaConfig&) const = default;
};

// Layers whose FFN is a mixture of experts: a router sends each token to top_k of them.
struct MoeConfig {
  int64_t experts = 0;
  int64_t top_k = 0;
  int64_t expert_width = 0;
  int64_t shared_width = 0;  // of the experts that every token passes, together; 0 = none
  kernels::RouterScore score = kernels::RouterScore::kSoftmax;
  bool correction_bias = false;  // added to the scores for the choice, not for the weights
  int64_t groups = 1;            // experts are chosen from the kept_groups best of these
  int64_t kept_groups = 1;
  kernels::GroupScore group_score = kernels::GroupScore::kBest;
  bool renormalise = false;  // the chosen experts' weights add up to 1 before they are scaled
  double scale = 1;
  std::vector<bool> sparse;  // by layer: has experts, else a dense FFN

  bool operator==(const MoeConfig&) const = default;
};

// What the two terms of a residual are weighted by: alpha RMSNorm(x) + beta f(RMSNorm(x)).
struct ResidualScale {
  double alpha = 1;
  double beta = 1;

  bool operator==(const ResidualScale&) const = default;
};

// Layers of lightning attention among those of softmax attention, and weighted residuals (MiniMax-01 2025).
struct LightningConfig {
  std::vector<bool> layers;  // by layer: lightning, else softmax
  ResidualScale lightning, softmax, ffn;

  bool operator==(const LightningConfig&) const = default;
};

// A decoder of pre-norm layers with grouped-query attention and a gated FFN. What families differ in are fields.
struct ModelConfig {
  std::string model_type;
  std::vector<std::string> architectures;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // the first values of a head, which are rotated
  int64_t intermediate_size = 0;
  int64_t max_position = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool tie_embeddings = false;
  bool qkv_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  std::optional<MlaConfig> mla;  // in place of grouped-query attention
  std::optional<MoeConfig> moe;
  std::optional<LightningConfig> lightning;
  bool fp8 = false;                 // matrices are stored in e4m3 with a scale for each block of 128x128
  std::vector<std::string> labels;  // of a classifier, in the order of its scores; none: the model generates text
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  // Sampling defaults of generation_config.json.
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;

  bool operator==(const ModelConfig&) const = default;
};

// `generation_config` may be null. Errors name the field; an unknown architecture or an unsupported field is refused.
Result<ModelConfig> config_from_json(const nlohmann::json& config, const nlohmann::json& generation_config);
Result<ModelConfig> config_from_gguf(const tensor::GgufFile& file);
// Of a folder, a .gguf file, or a .json file that is a config.json. `override_json`, if not empty, is an object whose
// members take the place of config.json's (RFC 7396); kBadOption where it is none, or for a GGUF file.
Result<ModelConfig> load_config(const std::string& path, const std::string& override_json);

// Inverse frequencies of the rotary angles, [rotary_dim / 2], with the scaling applied.
std::vector<float> inverse_frequencies(const ModelConfig& config);

}  // namespace sluice::models
