// Qwen3 dense (Yang et al. 2025): Llama's layers with an RMSNorm on each query and key head.
#pragma once

#include <memory>

#include "models/layers/decoder.h"

namespace sluice::models {

std::unique_ptr<Decoder> make_qwen3(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
