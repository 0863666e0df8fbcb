// DeepSeek-V3 and R1 (DeepSeek-AI 2024), and Kimi-K2 (Moonshot AI 2025), whose layers are the same: V2's latent
// attention and experts with another router.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "models/layers/decoder.h"

namespace sluice::models {

Result<void> read_deepseek_v3(const nlohmann::json& json, ModelConfig& config);
std::unique_ptr<Decoder> make_deepseek_v3(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
