#include "models/qwen2.h"

#include "base/check.h"

namespace sluice::models {

std::unique_ptr<Decoder> make_qwen2(const ModelConfig& config, WeightStore& weights) {
  SLUICE_CHECK(config.qkv_bias, "a Qwen2 configuration without biases on queries, keys and values");
  return make_dense_decoder(config, weights);
}

}  // namespace sluice::models
