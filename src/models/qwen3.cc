#include "models/qwen3.h"

#include "base/check.h"

namespace sluice::models {

std::unique_ptr<Decoder> make_qwen3(const ModelConfig& config, WeightStore& weights) {
  SLUICE_CHECK(config.qk_norm == QkNorm::kEachHead, "a Qwen3 configuration without norms on query and key heads");
  return make_dense_decoder(config, weights);
}

}  // namespace sluice::models
