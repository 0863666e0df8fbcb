#include "models/llama.h"

namespace sluice::models {

std::unique_ptr<Decoder> make_llama(const ModelConfig& config, WeightStore& weights) {
  return make_dense_decoder(config, weights);
}

}  // namespace sluice::models
