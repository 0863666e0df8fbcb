#include "models/deepseek_v3.h"

#include "models/config_fields.h"
#include "models/deepseek_v2.h"
#include "models/layers/mla.h"
#include "models/layers/moe.h"

namespace sluice::models {

// Section 2.1.2: experts are chosen by sigmoid scores with a bias that balances their load, within the groups whose two
// best add up to most; the shares are the scores without the bias, renormalised and scaled. Kimi-K2 has one group. The
// layers beyond num_hidden_layers, which predict further tokens, are not used.
Result<void> read_deepseek_v3(const nlohmann::json& json, ModelConfig& config) {
  SLUICE_TRY_VOID(read_mla(json, config));
  SLUICE_TRY(MoeConfig moe, read_deepseek_moe(json, config));
  Fields fields(json);
  const std::string method = fields.text("topk_method", "noaux_tc");
  const std::string score = fields.text("scoring_func", "sigmoid");
  moe.renormalise = fields.flag("norm_topk_prob", true);
  if (fields.error()) return *fields.error();
  if (method != "noaux_tc")
    return unsupported("topk_method", fmt::format("'{}' is not supported; noaux_tc is", method));
  if (score != "sigmoid") return unsupported("scoring_func", fmt::format("'{}' is not supported; sigmoid is", score));
  moe.score = kernels::RouterScore::kSigmoid;
  moe.correction_bias = true;
  moe.group_score = kernels::GroupScore::kBestTwo;
  config.moe = std::move(moe);
  return {};
}

// The blocks are V2's: they differ in their router alone.
std::unique_ptr<Decoder> make_deepseek_v3(const ModelConfig& config, WeightStore& weights) {
  return make_deepseek_v2(config, weights);
}

}  // namespace sluice::models
