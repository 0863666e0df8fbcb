// Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's layers with biases on queries, keys and values.
#pragma once

#include <memory>

#include "models/layers/decoder.h"

namespace sluice::models {

std::unique_ptr<Decoder> make_qwen2(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
