// x += Experts(RMSNorm(x)): a router sends each token to a few of many FFNs (Shazeer et al. 2017), and there may be
// experts that every token passes (DeepSeekMoE, Dai et al. 2024).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "models/layers/decoder.h"
#include "models/layers/ffn.h"
#include "models/layers/routing.h"

namespace sluice::models {

// What a family calls the tensors of a layer's experts, after "model.layers.<i>.".
struct MoeNames {
  std::string_view router = "mlp.gate.weight";
  std::string_view bias = "mlp.gate.e_score_correction_bias";
  std::string_view experts = "mlp.experts.";  // then the number of the expert
  std::string_view gate = "gate_proj";
  std::string_view up = "up_proj";
  std::string_view down = "down_proj";
  std::string_view shared = "mlp.shared_experts.";
};

// Rows are sorted by expert, so that a step reads the weights of each expert that it needs once. How many rows an
// expert gets stays on the device. A rank has some of the experts, or parts of them, and computes what those make of
// the tokens that are sent to them.
class MoeFfn final : public Block {
 public:
  MoeFfn(const ModelConfig& config, int64_t layer, const MoeNames& names, WeightStore& weights, Decoder& decoder);

  Result<void> run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                   float* out) const override;

 private:
  // Where the tokens of `x` [n, hidden] go.
  moe::Tokens choose(const kernels::Context& context, const Step& step, const void* x, int64_t n) const;
  moe::Tokens part_of(const moe::Tokens& tokens, int64_t first, int64_t count) const;
  // What this rank's experts make of the tokens is added to tokens.out.
  void run_experts(const kernels::Context& context, const Step& step, const moe::Tokens& tokens) const;

  const MoeConfig moe_;
  const int64_t layer_number_;
  const parallel::Slice own_;  // experts of this rank, among all copies
  const int64_t width_;        // of each, on this rank
  const int64_t hidden_;
  const WeightStore& weights_;
  const RoutingRecord& routing_;
  const RoutingRecord::Layer layer_;
  const moe::CopyChooser* const copies_;  // null: each expert is there once

  LinearWeight router_;               // [experts, hidden]
  std::optional<VectorWeight> bias_;  // [experts]
  ExpertsWeight gate_up_;             // [own] of [2 * width, hidden]
  ExpertsWeight down_;                // [own] of [hidden, width]
  std::optional<GatedFfn> shared_;
  // A pair is a token and an expert that it goes to; `rows` are those of pairs, sorted by expert.
  Scratch::Slot logits_slot_;          // [n, experts]
  Scratch::Slot ids_slot_;             // [n, top_k]
  Scratch::Slot copies_slot_;          // [n, top_k] the copies of them that the tokens go to
  Scratch::Slot shares_slot_;          // [n, top_k] what each expert's output is weighted by
  Scratch::Slot starts_slot_;          // [own]
  Scratch::Slot counts_slot_;          // [own]
  Scratch::Slot rows_slot_;            // [n, top_k] row of each pair
  Scratch::Slot expert_in_slot_;       // [rows, hidden] of dtype
  Scratch::Slot expert_gate_up_slot_;  // [rows, 2 * width]
  Scratch::Slot activated_slot_;       // [rows, width] of dtype
  Scratch::Slot expert_out_slot_;      // [rows, hidden]
};

// The FFN of a layer as the configuration says: experts, or a dense one.
std::unique_ptr<Block> make_ffn(const ModelConfig& config, int64_t layer, const MoeNames& names, WeightStore& weights,
                                Decoder& decoder);

}  // namespace sluice::models
