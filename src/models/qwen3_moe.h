// Qwen3-MoE (Yang et al. 2025): Qwen3's attention, and layers of experts chosen by a softmax router.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "models/layers/decoder.h"

namespace sluice::models {

Result<void> read_qwen3_moe(const nlohmann::json& json, ModelConfig& config);
Result<void> read_qwen3_moe_gguf(const tensor::GgufFile& file, ModelConfig& config);
std::unique_ptr<Decoder> make_qwen3_moe(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
