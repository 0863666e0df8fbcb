#include "models/layers/residual.h"

#include "models/layers/ops.h"

namespace sluice::models {

Residual::Residual(std::string norm, const ModelConfig& config, std::optional<ResidualScale> scale,
                   WeightStore& weights, Scratch& scratch)
    : epsilon_(config.rms_norm_eps),
      scale_(scale),
      weights_(weights),
      norm_(weights.vector({{std::move(norm), config.hidden_size}})),
      normed_slot_(
          scratch.declare("normed", config.hidden_size * static_cast<int64_t>(tensor::block_bytes(weights.dtype())))) {}

const void* Residual::enter(const kernels::Context& context, const Step& step) const {
  const int64_t n = step.batch.n_tokens, width = norm_.size;
  auto* normed = step.scratch.at<void>(normed_slot_);
  rms_norm(context, weights_, norm_, step.hidden, normed, n, epsilon_);
  if (!scale_) return normed;
  context.backend->rms_norm(context, {.in = step.hidden,
                                      .weight = weights_.address(norm_),
                                      .out = step.hidden,
                                      .n = n,
                                      .width = width,
                                      .in_stride = width,
                                      .out_stride = width,
                                      .epsilon = static_cast<float>(epsilon_)});
  // f is added unweighted, and the sum weighted by beta: beta (alpha / beta x + f(x)).
  context.backend->scale(
      context, {.values = step.hidden, .by = static_cast<float>(scale_->alpha / scale_->beta), .n = n, .width = width});
  return normed;
}

void Residual::leave(const kernels::Context& context, const Step& step) const {
  if (!scale_ || scale_->beta == 1) return;
  context.backend->scale(
      context,
      {.values = step.hidden, .by = static_cast<float>(scale_->beta), .n = step.batch.n_tokens, .width = norm_.size});
}

}  // namespace sluice::models
