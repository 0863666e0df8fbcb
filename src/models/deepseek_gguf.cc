// The metadata of GGUF files of architecture "deepseek2": DeepSeek-V2, V3 and R1, and Kimi-K2, told apart by their
// router.
#include <cmath>

#include "models/deepseek_v2.h"
#include "models/gguf_fields.h"

namespace sluice::models {
namespace {

constexpr std::string_view kArchitecture = "deepseek2";
constexpr int64_t kSoftmax = 1, kSigmoid = 2;  // expert_gating_func

// The sizes of a head are key_length and value_length, or in newer files, whose lengths are those of the latent cache,
// key_length_mla and value_length_mla.
Result<MlaConfig> read_latent(GgufFields& fields, const tensor::GgufFile& file, int64_t rotary) {
  const bool newer = fields.has("attention.key_length_mla");
  MlaConfig mla;
  mla.q_lora_rank = fields.whole("attention.q_lora_rank", 1, 0);
  mla.kv_lora_rank = fields.whole("attention.kv_lora_rank", 1);
  const char* const key = newer ? "attention.key_length_mla" : "attention.key_length";
  mla.qk_nope_head_dim = fields.whole(key, 1) - rotary;
  mla.v_head_dim = fields.whole(newer ? "attention.value_length_mla" : "attention.value_length", 1);
  if (fields.error()) return *fields.error();
  if (mla.qk_nope_head_dim < 1) return fields.wrong(key, fmt::format("is not above rope.dimension_count, {}", rotary));
  for (const int64_t size : {mla.q_lora_rank, mla.kv_lora_rank, mla.qk_nope_head_dim, mla.v_head_dim}) {
    if (size > 1 << 14) return fields.wrong("attention", fmt::format("has {}, too large for latent attention", size));
  }
  mla.split_up = file.tensors().contains("blk.0.attn_k_b.weight");
  return mla;
}

// Files from before the groups were written down: what the published models of that many experts have.
int64_t usual_groups(int64_t experts) { return experts == 256 || experts == 160 ? 8 : 1; }
int64_t usual_kept_groups(int64_t experts) { return experts == 256 ? 4 : experts == 160 ? 3 : 1; }

Result<MoeConfig> read_experts(GgufFields& fields, const ModelConfig& config) {
  MoeConfig moe;
  moe.experts = fields.whole("expert_count", 1);
  moe.top_k = fields.whole("expert_used_count", 1);
  moe.expert_width = fields.whole("expert_feed_forward_length", 1);
  const int64_t shared = fields.whole("expert_shared_count", 0, 0);
  moe.groups = fields.whole("expert_group_count", 1, usual_groups(moe.experts));
  moe.kept_groups = fields.whole("expert_group_used_count", 1, usual_kept_groups(moe.experts));
  moe.scale = fields.real("expert_weights_scale", 1);
  moe.renormalise = fields.flag("expert_weights_norm", false);
  const int64_t gating = fields.whole("expert_gating_func", 0, kSoftmax);
  const int64_t dense = fields.whole("leading_dense_block_count", 0, 0);
  if (fields.error()) return *fields.error();
  if (shared > 1 << 10) return fields.wrong("expert_shared_count", fmt::format("{} is above 1024", shared));
  moe.shared_width = shared * moe.expert_width;
  if (gating == kSigmoid) {
    moe.score = kernels::RouterScore::kSigmoid;
    moe.correction_bias = true;
    moe.group_score = kernels::GroupScore::kBestTwo;
  } else if (gating != kSoftmax && gating != 0) {
    return fields.wrong("expert_gating_func",
                        fmt::format("{} is not supported; 1 (softmax) and 2 (sigmoid) are", gating),
                        ErrorCode::kUnimplemented);
  } else if (moe.renormalise) {
    moe.scale = 1;  // renormalised shares are not scaled in V2's code
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) moe.sparse.push_back(layer >= dense);
  return moe;
}

}  // namespace

Result<void> read_deepseek_gguf(const tensor::GgufFile& file, ModelConfig& config) {
  GgufFields fields(file, kArchitecture);
  // Layers that predict further tokens come last and are not used.
  const int64_t further = fields.whole("nextn_predict_layers", 0, 0);
  if (further >= config.num_layers) return fields.wrong("nextn_predict_layers", "leaves no layers");
  config.num_layers -= further;
  SLUICE_TRY(config.mla, read_latent(fields, file, config.rotary_dim));
  config.head_dim = config.mla->qk_nope_head_dim + config.rotary_dim;
  config.num_kv_heads = config.num_heads;
  config.rope.interleaved = true;
  SLUICE_TRY(config.moe, read_experts(fields, config));
  if (config.moe->score == kernels::RouterScore::kSigmoid) config.architectures = {"DeepseekV3ForCausalLM"};
  if (config.rope.scaling == RopeScaling::kYarn && fields.has("rope.scaling.yarn_log_multiplier")) {
    // 0.1 mscale_all_dim. That mscale is the same, as in all published models, leaves the angles' scale at 1.
    const double multiplier = fields.real("rope.scaling.yarn_log_multiplier", 0);
    const double mscale = config.rope.factor > 1 ? multiplier * std::log(config.rope.factor) + 1 : 1;
    config.rope.angle_scale = 1;
    config.rope.score_scale = mscale * mscale;
    if (!std::isfinite(config.rope.score_scale))
      return fields.wrong("rope.scaling.yarn_log_multiplier", "is no number");
  }
  return {};
}

}  // namespace sluice::models
