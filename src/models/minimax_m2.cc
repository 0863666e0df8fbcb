#include "models/minimax_m2.h"

#include "models/config_fields.h"
#include "models/gguf_fields.h"
#include "models/layers/attention.h"
#include "models/layers/moe.h"

namespace sluice::models {
namespace {

constexpr MoeNames kNames{.router = "block_sparse_moe.gate.weight",
                          .bias = "block_sparse_moe.e_score_correction_bias",
                          .experts = "block_sparse_moe.experts.",
                          .gate = "w1",
                          .up = "w3",
                          .down = "w2"};

}  // namespace

Result<void> read_minimax_m2(const nlohmann::json& json, ModelConfig& config) {
  Fields fields(json);
  MoeConfig moe;
  moe.experts = fields.whole("num_local_experts", 1);
  moe.top_k = fields.whole("num_experts_per_tok", 1);
  moe.expert_width = config.intermediate_size;
  const std::string score = fields.text("scoring_func", "sigmoid");
  moe.score = kernels::RouterScore::kSigmoid;
  moe.correction_bias = fields.flag("use_routing_bias", true);
  moe.renormalise = true;
  moe.sparse.assign(static_cast<size_t>(config.num_layers), true);
  config.rotary_dim = fields.whole("rotary_dim", 2, config.rotary_dim);
  const bool qk_norm = fields.flag("use_qk_norm", true);
  const std::string norm_type = fields.text("qk_norm_type", "per_layer");
  const int64_t shared_width = fields.whole("shared_intermediate_size", 0, 0);
  const std::vector<int64_t> attention = fields.wholes("attn_type_list");
  if (fields.error()) return *fields.error();
  if (score != "sigmoid") return unsupported("scoring_func", fmt::format("'{}' is not supported; sigmoid is", score));
  if (norm_type != "per_layer") {
    return unsupported("qk_norm_type", fmt::format("'{}' is not supported; per_layer is", norm_type));
  }
  if (shared_width != 0) return unsupported("shared_intermediate_size", "shared experts are not supported here");
  SLUICE_TRY_VOID(
      refuse_present(json, {"sliding_window", "attn_window_size"}, "sliding-window attention is not supported"));
  if (std::any_of(attention.begin(), attention.end(), [](int64_t type) { return type != 1; })) {
    return unsupported("attn_type_list", "layers other than 1 (softmax attention) are not supported");
  }
  config.qk_norm = qk_norm ? QkNorm::kAllHeads : QkNorm::kNone;
  config.moe = std::move(moe);
  return {};
}

Result<void> read_minimax_m2_gguf(const tensor::GgufFile& file, ModelConfig& config) {
  constexpr int64_t kSigmoid = 2;
  GgufFields fields(file, "minimax-m2");
  MoeConfig moe;
  moe.experts = fields.whole("expert_count", 1);
  moe.top_k = fields.whole("expert_used_count", 1);
  moe.expert_width = fields.whole("expert_feed_forward_length", 1, config.intermediate_size);
  const int64_t gating = fields.whole("expert_gating_func", 0, kSigmoid);
  if (fields.error()) return *fields.error();
  if (gating != kSigmoid) {
    return fields.wrong("expert_gating_func", fmt::format("{} is not supported; 2 (sigmoid) is", gating),
                        ErrorCode::kUnimplemented);
  }
  moe.score = kernels::RouterScore::kSigmoid;
  moe.correction_bias = file.tensors().contains("blk.0.exp_probs_b.bias");
  moe.renormalise = true;
  moe.sparse.assign(static_cast<size_t>(config.num_layers), true);
  config.qk_norm = file.tensors().contains("blk.0.attn_q_norm.weight") ? QkNorm::kAllHeads : QkNorm::kNone;
  config.moe = std::move(moe);
  return {};
}

std::unique_ptr<Decoder> make_minimax_m2(const ModelConfig& config, WeightStore& weights) {
  auto decoder = std::make_unique<Decoder>(config, weights);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    decoder->add(std::make_unique<GroupedQueryAttention>(config, layer, weights, decoder->scratch(), decoder->kv()));
    decoder->add(make_ffn(config, layer, kNames, weights, *decoder));
  }
  return decoder;
}

}  // namespace sluice::models
