#include "models/gguf_names.h"

#include <fmt/format.h>

#include <array>

namespace sluice::models {
namespace {

struct Rename {
  std::string_view from;  // Hugging Face
  std::string_view to;    // GGUF
};

constexpr Rename kWhole[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

// After "model.layers.<i>.", up to the last dot.
constexpr Rename kInLayer[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

std::string gguf_name(std::string_view name) {
  for (const Rename& rename : kWhole) {
    if (rename.from == name) return std::string(rename.to);
  }
  constexpr std::string_view kLayers = "model.layers.";
  if (!name.starts_with(kLayers)) return std::string(name);
  const std::string_view rest = name.substr(kLayers.size());
  const size_t dot = rest.find('.');
  const size_t last = rest.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return std::string(name);
  const std::string_view middle = rest.substr(dot + 1, last - dot - 1);
  for (const Rename& rename : kInLayer) {
    if (rename.from == middle) return fmt::format("blk.{}.{}{}", rest.substr(0, dot), rename.to, rest.substr(last));
  }
  return std::string(name);
}

class GgufSource final : public tensor::TensorSource {
 public:
  explicit GgufSource(std::shared_ptr<const tensor::GgufFile> file) : file_(std::move(file)) {}

  Result<tensor::StoredTensor> find(std::string_view name) const override {
    const std::string own = gguf_name(name);
    const auto at = file_->tensors().find(own);
    if (at == file_->tensors().end()) {
      return Error{ErrorCode::kNotFound, fmt::format("{}: no tensor {}", file_->path(), own)};
    }
    return at->second;
  }
  bool has(std::string_view name) const override { return file_->tensors().contains(gguf_name(name)); }

 private:
  std::shared_ptr<const tensor::GgufFile> file_;
};

}  // namespace

std::unique_ptr<tensor::TensorSource> gguf_source(std::shared_ptr<const tensor::GgufFile> file) {
  return std::make_unique<GgufSource>(std::move(file));
}

}  // namespace sluice::models
