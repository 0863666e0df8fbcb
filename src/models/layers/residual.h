// How half a layer joins the residual stream: x += f(RMSNorm(x)), or weighted, as MiniMax-Text-01 does,
// x = alpha RMSNorm(x) + beta f(RMSNorm(x)).
#pragma once

#include <optional>
#include <string>

#include "models/config.h"
#include "models/layers/weights.h"

namespace sluice::models {

class Residual {
 public:
  Residual(std::string norm, const ModelConfig& config, std::optional<ResidualScale> scale, WeightStore& weights);

  // RMSNorm of `hidden` [n, hidden] to `normed`, of dtype. What f makes of it is then added to `hidden`.
  void enter(const kernels::Context& context, float* hidden, int64_t n, void* normed) const;
  // After that. It is linear in `hidden`, so that ranks that each have a summand of it may do this first.
  void leave(const kernels::Context& context, float* hidden, int64_t n) const;

 private:
  const double epsilon_;
  const std::optional<ResidualScale> scale_;
  const WeightStore& weights_;
  const VectorWeight norm_;  // [hidden]
};

// Of the FFN of any layer, if its residual is weighted.
inline std::optional<ResidualScale> ffn_scale(const ModelConfig& config) {
  return config.lightning ? std::optional(config.lightning->ffn) : std::nullopt;
}

}  // namespace sluice::models
