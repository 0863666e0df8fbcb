#include "models/deepseek_v2.h"

#include "models/config_fields.h"
#include "models/layers/mla.h"
#include "models/layers/moe.h"

namespace sluice::models {

// Layers from first_k_dense_replace on have experts, moe_layer_freq of them apart.
Result<MoeConfig> read_deepseek_moe(const nlohmann::json& json, const ModelConfig& config) {
  Fields fields(json);
  MoeConfig moe;
  moe.experts = fields.whole("n_routed_experts", 1);
  moe.top_k = fields.whole("num_experts_per_tok", 1);
  moe.expert_width = fields.whole("moe_intermediate_size", 1);
  const int64_t shared = fields.whole("n_shared_experts", 0, 0);
  moe.groups = fields.whole("n_group", 1, 1);
  moe.kept_groups = fields.whole("topk_group", 1, 1);
  moe.scale = fields.real("routed_scaling_factor", 1);
  const int64_t first = fields.whole("first_k_dense_replace", 0, 0);
  const int64_t step = fields.whole("moe_layer_freq", 1, 1);
  if (fields.error()) return *fields.error();
  if (shared > 1 << 10) {
    return Error{ErrorCode::kProtocol,
                 fmt::format("config.json: n_shared_experts {} is not within 0 and 1024", shared)};
  }
  moe.shared_width = shared * moe.expert_width;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) moe.sparse.push_back(layer >= first && layer % step == 0);
  return moe;
}

// Section 2.2.1: the shares of the chosen experts are their softmax over all experts, not renormalised but scaled. V2
// chooses within the groups (devices) whose best expert scores highest; V2-Lite has no groups.
Result<void> read_deepseek_v2(const nlohmann::json& json, ModelConfig& config) {
  SLUICE_TRY_VOID(read_mla(json, config));
  SLUICE_TRY(MoeConfig moe, read_deepseek_moe(json, config));
  Fields fields(json);
  const std::string method = fields.text("topk_method", "greedy");
  const std::string score = fields.text("scoring_func", "softmax");
  moe.renormalise = fields.flag("norm_topk_prob", false);
  if (fields.error()) return *fields.error();
  if (score != "softmax") return unsupported("scoring_func", fmt::format("'{}' is not supported; softmax is", score));
  moe.score = kernels::RouterScore::kSoftmax;
  moe.group_score = kernels::GroupScore::kBest;
  if (method == "greedy") {
    moe.groups = moe.kept_groups = 1;
  } else if (method != "group_limited_greedy") {
    return unsupported("topk_method",
                       fmt::format("'{}' is not supported; greedy and group_limited_greedy are", method));
  }
  // Renormalised shares are not scaled in DeepSeek's code.
  if (moe.renormalise) moe.scale = 1;
  config.moe = std::move(moe);
  return {};
}

std::unique_ptr<Decoder> make_deepseek_v2(const ModelConfig& config, WeightStore& weights) {
  auto decoder = std::make_unique<Decoder>(config, weights);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    decoder->add(std::make_unique<LatentAttention>(config, layer, weights, decoder->scratch(), decoder->kv()));
    decoder->add(make_ffn(config, layer, MoeNames{}, weights, *decoder));
  }
  return decoder;
}

}  // namespace sluice::models
