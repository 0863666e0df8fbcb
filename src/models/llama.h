// Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024), and what follows their layout, such as SmolLM2.
#pragma once

#include <memory>

#include "models/layers/decoder.h"

namespace sluice::models {

std::unique_ptr<Decoder> make_llama(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
