// The families of models and what they differ in. One row each in registry.cc.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string_view>

#include "base/result.h"
#include "models/config.h"
#include "models/layers/weights.h"

namespace sluice::models {

class Decoder;

struct FamilyRow {
  std::string_view architecture;       // in config.json
  std::string_view gguf_architecture;  // general.architecture; empty = not read from GGUF
  bool default_qkv_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  bool gguf_interleaved_rope = false;
  // Reads the fields of config.json that are the family's own, after the common ones; null = there are none.
  Result<void> (*read)(const nlohmann::json& json, ModelConfig& config) = nullptr;
  // Likewise of GGUF metadata.
  Result<void> (*read_gguf)(const tensor::GgufFile& file, ModelConfig& config) = nullptr;
  // Declares the model's weights in `weights` and returns its forward pass.
  std::unique_ptr<Decoder> (*make)(const ModelConfig& config, WeightStore& weights) = nullptr;
};

std::span<const FamilyRow> families();
bool is_classifier(std::string_view architecture);
// Also by the name of the family's classifier (LlamaForSequenceClassification). kUnimplemented names the architectures
// that are known.
Result<const FamilyRow*> find_family(std::string_view architecture);
Result<const FamilyRow*> find_gguf_family(std::string_view architecture);

}  // namespace sluice::models
