#include <fmt/format.h>

#include "models/deepseek_v2.h"
#include "models/deepseek_v3.h"
#include "models/family.h"
#include "models/llama.h"
#include "models/minimax_m2.h"
#include "models/minimax_text_01.h"
#include "models/qwen2.h"
#include "models/qwen3.h"
#include "models/qwen3_moe.h"

namespace sluice::models {
namespace {

constexpr FamilyRow kFamilies[] = {
    {.architecture = "LlamaForCausalLM",
     .gguf_architecture = "llama",
     .gguf_interleaved_rope = true,
     .make = make_llama},
    {.architecture = "Qwen2ForCausalLM", .gguf_architecture = "qwen2", .default_qkv_bias = true, .make = make_qwen2},
    {.architecture = "Qwen3ForCausalLM",
     .gguf_architecture = "qwen3",
     .qk_norm = QkNorm::kEachHead,
     .make = make_qwen3},
    {.architecture = "Qwen3MoeForCausalLM",
     .gguf_architecture = "qwen3moe",
     .qk_norm = QkNorm::kEachHead,
     .read = read_qwen3_moe,
     .read_gguf = read_qwen3_moe_gguf,
     .make = make_qwen3_moe},
    {.architecture = "DeepseekV2ForCausalLM",
     .gguf_architecture = "deepseek2",
     .read = read_deepseek_v2,
     .read_gguf = read_deepseek_gguf,
     .make = make_deepseek_v2},
    {.architecture = "DeepseekV3ForCausalLM", .read = read_deepseek_v3, .make = make_deepseek_v3},
    // Published, and its port to Hugging Face transformers.
    {.architecture = "MiniMaxText01ForCausalLM", .read = read_minimax_text_01, .make = make_minimax_text_01},
    {.architecture = "MiniMaxForCausalLM", .read = read_minimax_text_01, .make = make_minimax_text_01},
    {.architecture = "MiniMaxM2ForCausalLM",
     .gguf_architecture = "minimax-m2",
     .read = read_minimax_m2,
     .read_gguf = read_minimax_m2_gguf,
     .make = make_minimax_m2},
};

constexpr std::string_view kClassifier = "ForSequenceClassification";

Result<const FamilyRow*> find_by(std::string_view FamilyRow::*field, std::string_view name) {
  std::string known;
  for (const FamilyRow& row : kFamilies) {
    if ((row.*field).empty()) continue;
    if (row.*field == name) return &row;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.*field);
  }
  return Error{ErrorCode::kUnimplemented,
               fmt::format("the architecture '{}' is not supported; these are: {}", name, known)};
}

}  // namespace

std::span<const FamilyRow> families() { return kFamilies; }
bool is_classifier(std::string_view architecture) { return architecture.ends_with(kClassifier); }
Result<const FamilyRow*> find_family(std::string_view architecture) {
  if (!is_classifier(architecture)) return find_by(&FamilyRow::architecture, architecture);
  const auto model = architecture.substr(0, architecture.size() - kClassifier.size());
  return find_by(&FamilyRow::architecture, fmt::format("{}ForCausalLM", model));
}
Result<const FamilyRow*> find_gguf_family(std::string_view architecture) {
  return find_by(&FamilyRow::gguf_architecture, architecture);
}

}  // namespace sluice::models
