#include "models/layers/ffn.h"

#include <fmt/format.h>

#include "models/layers/ops.h"

namespace sluice::models {

GatedFfn::GatedFfn(const std::string& prefix, int64_t hidden, int64_t width, parallel::Place place,
                   WeightStore& weights, Scratch& scratch)
    : width_(parallel::part_of(width, place).count), weights_(weights) {
  const parallel::Slice own = parallel::part_of(width, place);
  gate_up_ = weights.linear(
      {part(prefix + "gate_proj.weight", width, own), part(prefix + "up_proj.weight", width, own)}, hidden);
  down_ = weights.linear({{prefix + "down_proj.weight", hidden}}, width_, {.first = own.first, .of = width});
  const int64_t groups = place.size > 1 ? weights.layout().dp_size : 1;  // whose tokens it gets
  gate_up_slot_ = scratch.declare("gate_up", ungated_row_bytes(weights.backend(), gate_up_.shape), groups);
  activated_slot_ =
      scratch.declare("activated", width_ * static_cast<int64_t>(tensor::block_bytes(weights.dtype())), groups);
}

void GatedFfn::forward(const kernels::Context& context, const Scratch& scratch, const void* in, float* out,
                       int64_t n) const {
  widen(context, scratch, in, n);
  narrow(context, scratch, out, n);
}

void GatedFfn::widen(const kernels::Context& context, const Scratch& scratch, const void* in, int64_t n) const {
  context.backend->gated_linear(context, {.product = {.shape = &gate_up_.shape,
                                                      .weight = weights_.address(gate_up_),
                                                      .in = in,
                                                      .out = scratch.at<float>(gate_up_slot_),
                                                      .n = n},
                                          .out = scratch.at<void>(activated_slot_),
                                          .out_dtype = weights_.dtype()});
}

void GatedFfn::narrow(const kernels::Context& context, const Scratch& scratch, float* out, int64_t n) const {
  product(context, weights_, down_, scratch.at<void>(activated_slot_), out, n, nullptr, /*accumulate=*/true);
}

DenseFfn::DenseFfn(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch)
    : Block(Residual(fmt::format("model.layers.{}.post_attention_layernorm.weight", layer), config, ffn_scale(config),
                     weights),
            weights.layout().dense_data_parallel ? Spread::kOwnTokens : Spread::kAllTokens),
      ffn_(fmt::format("model.layers.{}.mlp.", layer), config.hidden_size, config.intermediate_size,
           weights.layout().dense_ffn(), weights, scratch) {}

Result<void> DenseFfn::run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                           float* out) const {
  ffn_.forward(context, step.scratch, x, out, n);
  return {};
}

}  // namespace sluice::models
