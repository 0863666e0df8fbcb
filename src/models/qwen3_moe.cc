#include "models/qwen3_moe.h"

#include "models/config_fields.h"
#include "models/gguf_fields.h"
#include "models/layers/attention.h"
#include "models/layers/moe.h"

namespace sluice::models {

// Every decoder_sparse_step-th layer has experts, but for those of mlp_only_layers.
Result<void> read_qwen3_moe(const nlohmann::json& json, ModelConfig& config) {
  Fields fields(json);
  MoeConfig moe;
  moe.experts = fields.whole("num_experts", 1);
  moe.top_k = fields.whole("num_experts_per_tok", 1);
  moe.expert_width = fields.whole("moe_intermediate_size", 1);
  moe.renormalise = fields.flag("norm_topk_prob", false);
  const int64_t step = fields.whole("decoder_sparse_step", 1, 1);
  const std::vector<int64_t> dense = fields.wholes("mlp_only_layers");
  if (fields.error()) return *fields.error();
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    moe.sparse.push_back((layer + 1) % step == 0 && std::find(dense.begin(), dense.end(), layer) == dense.end());
  }
  config.moe = std::move(moe);
  return {};
}

// The file says nothing of renormalisation, which all published models have.
Result<void> read_qwen3_moe_gguf(const tensor::GgufFile& file, ModelConfig& config) {
  GgufFields fields(file, "qwen3moe");
  MoeConfig moe;
  moe.experts = fields.whole("expert_count", 1);
  moe.top_k = fields.whole("expert_used_count", 1);
  moe.expert_width = fields.whole("expert_feed_forward_length", 1);
  if (fields.error()) return *fields.error();
  moe.renormalise = true;
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    moe.sparse.push_back(file.tensors().contains(fmt::format("blk.{}.ffn_gate_exps.weight", layer)));
  }
  config.moe = std::move(moe);
  return {};
}

std::unique_ptr<Decoder> make_qwen3_moe(const ModelConfig& config, WeightStore& weights) {
  auto decoder = std::make_unique<Decoder>(config, weights);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    decoder->add(std::make_unique<GroupedQueryAttention>(config, layer, weights, decoder->scratch(), decoder->kv()));
    decoder->add(make_ffn(config, layer, MoeNames{}, weights, *decoder));
  }
  return decoder;
}

}  // namespace sluice::models
