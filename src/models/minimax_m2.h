// MiniMax-M2 (2025): grouped-query attention whose queries and keys are normed over all heads together and rotated in
// part, and experts chosen by a sigmoid router with a correction bias.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "models/layers/decoder.h"

namespace sluice::models {

Result<void> read_minimax_m2(const nlohmann::json& json, ModelConfig& config);
Result<void> read_minimax_m2_gguf(const tensor::GgufFile& file, ModelConfig& config);
std::unique_ptr<Decoder> make_minimax_m2(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
