#include "models/layers/residual.h"

#include "models/layers/ops.h"

namespace sluice::models {

Residual::Residual(std::string norm, const ModelConfig& config, std::optional<ResidualScale> scale,
                   WeightStore& weights)
    : epsilon_(config.rms_norm_eps),
      scale_(scale),
      weights_(weights),
      norm_(weights.vector({{std::move(norm), config.hidden_size}})) {}

void Residual::enter(const kernels::Context& context, float* hidden, int64_t n, void* normed) const {
  const int64_t width = norm_.size;
  rms_norm(context, weights_, norm_, hidden, normed, n, epsilon_);
  if (!scale_) return;
  context.backend->rms_norm(context, {.in = hidden,
                                      .weight = weights_.address(norm_),
                                      .out = hidden,
                                      .n = n,
                                      .width = width,
                                      .in_stride = width,
                                      .out_stride = width,
                                      .epsilon = static_cast<float>(epsilon_)});
  // f is added unweighted, and the sum weighted by beta: beta (alpha / beta x + f(x)).
  context.backend->scale(
      context, {.values = hidden, .by = static_cast<float>(scale_->alpha / scale_->beta), .n = n, .width = width});
}

void Residual::leave(const kernels::Context& context, float* hidden, int64_t n) const {
  if (!scale_ || scale_->beta == 1) return;
  context.backend->scale(context,
                         {.values = hidden, .by = static_cast<float>(scale_->beta), .n = n, .width = norm_.size});
}

}  // namespace sluice::models
