// MiniMax-Text-01 (MiniMax-01 2025): lightning attention in most layers, softmax attention in the others, experts in
// all, and a residual stream that is normed and weighted.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "models/layers/decoder.h"

namespace sluice::models {

// The field names of the published checkpoint and those of its port to Hugging Face transformers.
Result<void> read_minimax_text_01(const nlohmann::json& json, ModelConfig& config);
std::unique_ptr<Decoder> make_minimax_text_01(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
