// x += FFN(RMSNorm(x)) with a SiLU-gated FFN (Shazeer 2020): down(silu(gate(x)) * up(x)).
#pragma once

#include <cstdint>
#include <string>

#include "models/layers/decoder.h"

namespace sluice::models {

// The FFN by itself, without norm: a layer's own, or the experts that every token passes.
class GatedFfn {
 public:
  // `prefix` is followed by gate_proj, up_proj and down_proj. The rank at `place` has a part of the `width` values
  // between the two products.
  GatedFfn(const std::string& prefix, int64_t hidden, int64_t width, parallel::Place place, WeightStore& weights,
           Scratch& scratch);

  // out += FFN(in), or this rank's summand of it; in [n, hidden] of the weights' dtype, out [n, hidden].
  void forward(const kernels::Context& context, const Scratch& scratch, const void* in, float* out, int64_t n) const;
  // Its two halves: up to what lies between the products, and on from there.
  void widen(const kernels::Context& context, const Scratch& scratch, const void* in, int64_t n) const;
  void narrow(const kernels::Context& context, const Scratch& scratch, float* out, int64_t n) const;

 private:
  const int64_t width_;  // of this rank
  const WeightStore& weights_;
  LinearWeight gate_up_;          // [2 * width, hidden]
  LinearWeight down_;             // [hidden, width]
  Scratch::Slot gate_up_slot_;    // [n, 2 * width]
  Scratch::Slot activated_slot_;  // [n, width] of dtype
};

class DenseFfn final : public Block {
 public:
  DenseFfn(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch);

  Result<void> run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                   float* out) const override;

 private:
  const GatedFfn ffn_;
};

}  // namespace sluice::models
