// DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024): latent attention, and from the second layer on shared and routed experts.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "models/layers/decoder.h"

namespace sluice::models {

// The fields of experts that V2 and V3 share; the router's are left to them.
Result<MoeConfig> read_deepseek_moe(const nlohmann::json& json, const ModelConfig& config);

Result<void> read_deepseek_v2(const nlohmann::json& json, ModelConfig& config);
// Of V2 and V3: the file tells which.
Result<void> read_deepseek_gguf(const tensor::GgufFile& file, ModelConfig& config);
std::unique_ptr<Decoder> make_deepseek_v2(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
