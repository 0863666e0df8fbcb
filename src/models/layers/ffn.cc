#include "models/layers/ffn.h"

#include <fmt/format.h>

#include "models/layers/ops.h"

namespace sluice::models {

GatedFfn::GatedFfn(const std::string& prefix, int64_t hidden, int64_t width, WeightStore& weights, Scratch& scratch)
    : width_(width), weights_(weights) {
  gate_up_ = weights.linear({{prefix + "gate_proj.weight", width}, {prefix + "up_proj.weight", width}}, hidden);
  down_ = weights.linear({{prefix + "down_proj.weight", hidden}}, width);
  gate_up_slot_ = scratch.declare("gate_up", 2 * width * 4);
  activated_slot_ = scratch.declare("activated", width * static_cast<int64_t>(tensor::block_bytes(weights.dtype())));
}

void GatedFfn::forward(const kernels::Context& context, const Scratch& scratch, const void* in, float* out,
                       int64_t n) const {
  auto* gate_up = scratch.at<float>(gate_up_slot_);
  auto* activated = scratch.at<void>(activated_slot_);
  product(context, weights_, gate_up_, in, gate_up, n);
  context.backend->silu_mul(
      context, {.gate_up = gate_up, .out = activated, .out_dtype = weights_.dtype(), .n = n, .width = width_});
  product(context, weights_, down_, activated, out, n, nullptr, /*accumulate=*/true);
}

DenseFfn::DenseFfn(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch)
    : residual_(fmt::format("model.layers.{}.post_attention_layernorm.weight", layer), config, ffn_scale(config),
                weights, scratch),
      ffn_(fmt::format("model.layers.{}.mlp.", layer), config.hidden_size, config.intermediate_size, weights, scratch) {
}

void DenseFfn::forward(const kernels::Context& context, const Step& step) const {
  const void* x = residual_.enter(context, step);
  ffn_.forward(context, step.scratch, x, step.hidden, step.batch.n_tokens);
  residual_.leave(context, step);
}

}  // namespace sluice::models
