#include "models/gguf_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

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
    {"input_layernorm", "attn_norm"},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"},
    {"self_attn.q_norm", "attn_q_norm"},
    {"self_attn.k_norm", "attn_k_norm"},
    {"self_attn.q_a_proj", "attn_q_a"},
    {"self_attn.q_a_layernorm", "attn_q_a_norm"},
    {"self_attn.q_b_proj", "attn_q_b"},
    {"self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"},
    {"self_attn.kv_a_layernorm", "attn_kv_a_norm"},
    {"self_attn.kv_b_proj", "attn_kv_b"},
    {"self_attn.k_b_proj", "attn_k_b"},
    {"self_attn.v_b_proj", "attn_v_b"},
    {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
    {"mlp.gate", "ffn_gate_inp"},
    {"mlp.shared_experts.gate_proj", "ffn_gate_shexp"},
    {"mlp.shared_experts.up_proj", "ffn_up_shexp"},
    {"mlp.shared_experts.down_proj", "ffn_down_shexp"},
    {"block_sparse_moe.gate", "ffn_gate_inp"},
};

// After "model.layers.<i>.", whole.
constexpr Rename kWholeInLayer[] = {
    {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
    {"block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias"},
};

// After "model.layers.<i>.mlp.experts.<e>." or MiniMax's "model.layers.<i>.block_sparse_moe.experts.<e>.": GGUF keeps
// the matrices of all experts of a layer in one tensor.
constexpr std::string_view kExperts[] = {".mlp.experts.", ".block_sparse_moe.experts."};
constexpr Rename kOfExperts[] = {{"gate_proj", "ffn_gate_exps"}, {"up_proj", "ffn_up_exps"},
                                 {"down_proj", "ffn_down_exps"}, {"w1", "ffn_gate_exps"},
                                 {"w3", "ffn_up_exps"},          {"w2", "ffn_down_exps"}};

struct ExpertTensor {
  std::string stacked;  // GGUF's name
  int64_t expert = 0;
};

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "model.layers.<i><experts><e>.<matrix>.weight", or nothing.
std::optional<ExpertTensor> expert_tensor(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.", kWeight = ".weight";
  const auto* experts =
      std::ranges::find_if(kExperts, [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
  if (!name.starts_with(kLayers) || experts == std::end(kExperts) || !name.ends_with(kWeight)) return std::nullopt;
  const size_t at = name.find(*experts);
  const auto layer = number(name.substr(kLayers.size(), at - kLayers.size()));
  std::string_view rest = name.substr(at + experts->size());
  rest.remove_suffix(kWeight.size());
  const size_t dot = rest.find('.');
  const auto expert = number(rest.substr(0, dot));
  if (!layer || !expert || dot == std::string_view::npos) return std::nullopt;
  for (const Rename& rename : kOfExperts) {
    if (rename.from == rest.substr(dot + 1)) {
      return ExpertTensor{fmt::format("blk.{}.{}.weight", *layer, rename.to), *expert};
    }
  }
  return std::nullopt;
}

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
  for (const Rename& rename : kWholeInLayer) {
    if (rename.from == rest.substr(dot + 1)) return fmt::format("blk.{}.{}", rest.substr(0, dot), rename.to);
  }
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
    if (const auto expert = expert_tensor(name)) return find_expert(*expert);
    const std::string own = gguf_name(name);
    const auto at = file_->tensors().find(own);
    if (at == file_->tensors().end()) {
      return Error{ErrorCode::kNotFound, fmt::format("{}: no tensor {}", file_->path(), own)};
    }
    // Vectors are read from any value on, which may lie within a block.
    if (at->second.shape.size() < 2 && tensor::block_elements(at->second.dtype) > 1) {
      return Error{ErrorCode::kUnimplemented, fmt::format("{}: tensor {}: a vector in {} is not supported",
                                                          file_->path(), own, tensor::to_string(at->second.dtype))};
    }
    // The parts of all heads one after another, as a matrix.
    if (at->second.shape.size() == 3) {
      tensor::StoredTensor flat = at->second;
      flat.shape = {flat.shape[0] * flat.shape[1], flat.shape[2]};
      return flat;
    }
    return at->second;
  }
  bool has(std::string_view name) const override {
    if (const auto expert = expert_tensor(name)) return find_expert(*expert).ok();
    return file_->tensors().contains(gguf_name(name));
  }

 private:
  Result<tensor::StoredTensor> find_expert(const ExpertTensor& wanted) const {
    const auto at = file_->tensors().find(wanted.stacked);
    if (at == file_->tensors().end()) {
      return Error{ErrorCode::kNotFound, fmt::format("{}: no tensor {}", file_->path(), wanted.stacked)};
    }
    const tensor::StoredTensor& all = at->second;  // [experts, out, in]
    if (all.shape.size() != 3 || wanted.expert < 0 || wanted.expert >= all.shape[0]) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: tensor {} has no expert {}", file_->path(), wanted.stacked, wanted.expert)};
    }
    tensor::StoredTensor one = all;
    one.name = fmt::format("{}[{}]", wanted.stacked, wanted.expert);
    one.shape = {all.shape[1], all.shape[2]};
    const size_t bytes = all.data.size() / static_cast<size_t>(all.shape[0]);
    one.data = all.data.subspan(static_cast<size_t>(wanted.expert) * bytes, bytes);
    return one;
  }

  std::shared_ptr<const tensor::GgufFile> file_;
};

}  // namespace

std::unique_ptr<tensor::TensorSource> gguf_source(std::shared_ptr<const tensor::GgufFile> file) {
  return std::make_unique<GgufSource>(std::move(file));
}

}  // namespace sluice::models
