// How half a layer joins the residual stream: x += f(RMSNorm(x)), or weighted, as MiniMax-Text-01 does,
// x = alpha RMSNorm(x) + beta f(RMSNorm(x)).
#pragma once

#include <optional>
#include <string>

#include "models/layers/decoder.h"

namespace sluice::models {

class Residual {
 public:
  Residual(std::string norm, const ModelConfig& config, std::optional<ResidualScale> scale, WeightStore& weights,
           Scratch& scratch);

  // RMSNorm(x), [n, hidden] of dtype. What f makes of it is then added to step.hidden.
  const void* enter(const kernels::Context& context, const Step& step) const;
  // After that.
  void leave(const kernels::Context& context, const Step& step) const;

 private:
  const double epsilon_;
  const std::optional<ResidualScale> scale_;
  const WeightStore& weights_;
  const VectorWeight norm_;          // [hidden]
  const Scratch::Slot normed_slot_;  // [n, hidden] of dtype
};

// Of the FFN of any layer, if its residual is weighted.
inline std::optional<ResidualScale> ffn_scale(const ModelConfig& config) {
  return config.lightning ? std::optional(config.lightning->ffn) : std::nullopt;
}

}  // namespace sluice::models
