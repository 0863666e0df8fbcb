#include "models/layers/moe.h"

#include <fmt/format.h>

#include "base/check.h"
#include "models/layers/ops.h"

namespace sluice::models {

MoeFfn::MoeFfn(const ModelConfig& config, int64_t layer, const MoeNames& names, WeightStore& weights, Decoder& decoder)
    : moe_(*config.moe),
      hidden_(config.hidden_size),
      weights_(weights),
      routing_(decoder.routing()),
      layer_(decoder.routing().declare(moe_.experts, moe_.top_k)),
      residual_(fmt::format("model.layers.{}.post_attention_layernorm.weight", layer), config, ffn_scale(config),
                weights, decoder.scratch()) {
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const int64_t width = moe_.expert_width;
  router_ = weights.linear({{fmt::format("{}{}", prefix, names.router), moe_.experts}}, hidden_);
  if (moe_.correction_bias) bias_ = weights.vector({{fmt::format("{}{}", prefix, names.bias), moe_.experts}});
  const auto of_expert = [&](int64_t e, std::string_view matrix) {
    return fmt::format("{}{}{}.{}.weight", prefix, names.experts, e, matrix);
  };
  gate_up_ = weights.experts(
      moe_.experts,
      [&](int64_t e) {
        return std::vector<Part>{{of_expert(e, names.gate), width}, {of_expert(e, names.up), width}};
      },
      hidden_);
  down_ = weights.experts(
      moe_.experts,
      [&](int64_t e) {
        return std::vector<Part>{{of_expert(e, names.down), hidden_}};
      },
      width);
  Scratch& scratch = decoder.scratch();
  if (moe_.shared_width > 0) {
    shared_.emplace(fmt::format("{}{}", prefix, names.shared), hidden_, moe_.shared_width, weights, scratch);
  }

  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  const int64_t pairs = moe_.top_k, padding = weights.backend().group_padding(moe_.experts);
  logits_slot_ = scratch.declare("router_logits", moe_.experts * 4);
  ids_slot_ = scratch.declare("expert_ids", pairs * 4);
  shares_slot_ = scratch.declare("expert_shares", pairs * 4);
  starts_slot_ = scratch.declare("expert_starts", 4, 0, moe_.experts);
  counts_slot_ = scratch.declare("expert_counts", 4, 0, moe_.experts);
  rows_slot_ = scratch.declare("expert_rows", pairs * 4);
  expert_in_slot_ = scratch.declare("expert_in", hidden_ * element, pairs, padding);
  expert_gate_up_slot_ = scratch.declare("expert_gate_up", 2 * width * 4, pairs, padding);
  activated_slot_ = scratch.declare("expert_activated", width * element, pairs, padding);
  expert_out_slot_ = scratch.declare("expert_out", hidden_ * 4, pairs, padding);
}

void MoeFfn::forward(const kernels::Context& context, const Step& step) const {
  const void* x = residual_.enter(context, step);
  choose(context, step, x);
  run_experts(context, step, x);
  if (shared_) shared_->forward(context, step.scratch, x, step.hidden, step.batch.n_tokens);
  residual_.leave(context, step);
}

void MoeFfn::choose(const kernels::Context& context, const Step& step, const void* x) const {
  const kernels::Backend& backend = *context.backend;
  const int64_t n = step.batch.n_tokens;
  auto* logits = step.scratch.at<float>(logits_slot_);
  int32_t* recorded = routing_.chosen(layer_);
  int32_t* ids = recorded == nullptr ? step.scratch.at<int32_t>(ids_slot_) : recorded;
  const int32_t* forced = routing_.forced(layer_);
  product(context, weights_, router_, x, logits, n);
  backend.route(context, {.logits = logits,
                          .bias = bias_ ? weights_.address(*bias_) : nullptr,
                          .ids = ids,
                          .weights = step.scratch.at<float>(shares_slot_),
                          .margins = routing_.margins(layer_),
                          .forced = forced,
                          .n = n,
                          .experts = moe_.experts,
                          .top_k = moe_.top_k,
                          .score = moe_.score,
                          .groups = moe_.groups,
                          .kept_groups = moe_.kept_groups,
                          .group_score = moe_.group_score,
                          .renormalise = moe_.renormalise,
                          .scale = static_cast<float>(moe_.scale)});
  backend.sort_by_expert(context, {.ids = forced == nullptr ? ids : forced,
                                   .starts = step.scratch.at<int32_t>(starts_slot_),
                                   .counts = step.scratch.at<int32_t>(counts_slot_),
                                   .rows = step.scratch.at<int32_t>(rows_slot_),
                                   .loads = routing_.loads(layer_),
                                   .n_pairs = n * moe_.top_k,
                                   .experts = moe_.experts});
}

void MoeFfn::run_experts(const kernels::Context& context, const Step& step, const void* x) const {
  const kernels::Backend& backend = *context.backend;
  const int64_t n = step.batch.n_tokens;
  const auto* rows = step.scratch.at<int32_t>(rows_slot_);
  auto* in = step.scratch.at<void>(expert_in_slot_);
  auto* gate_up = step.scratch.at<float>(expert_gate_up_slot_);
  auto* activated = step.scratch.at<void>(activated_slot_);
  auto* out = step.scratch.at<float>(expert_out_slot_);
  const auto multiply = [&](const ExpertsWeight& weight, const void* from, float* to) {
    backend.grouped_linear(context, {.shape = &weight.shape,
                                     .weights = weights_.address(weight),
                                     .weight_stride = weight.stride,
                                     .in = from,
                                     .starts = step.scratch.at<int32_t>(starts_slot_),
                                     .counts = step.scratch.at<int32_t>(counts_slot_),
                                     .out = to,
                                     .experts = moe_.experts});
  };
  backend.scatter_rows(
      context,
      {.in = x, .rows = rows, .out = in, .dtype = weights_.dtype(), .n = n, .copies = moe_.top_k, .width = hidden_});
  multiply(gate_up_, in, gate_up);
  backend.silu_mul(context, {.gate_up = gate_up,
                             .out = activated,
                             .out_dtype = weights_.dtype(),
                             .n = n * moe_.top_k,
                             .width = moe_.expert_width,
                             .rows = rows});
  multiply(down_, activated, out);
  backend.combine_rows(context, {.in = out,
                                 .rows = rows,
                                 .weights = step.scratch.at<float>(shares_slot_),
                                 .out = step.hidden,
                                 .n = n,
                                 .copies = moe_.top_k,
                                 .width = hidden_});
}

std::unique_ptr<Block> make_ffn(const ModelConfig& config, int64_t layer, const MoeNames& names, WeightStore& weights,
                                Decoder& decoder) {
  if (config.moe && config.moe->sparse[static_cast<size_t>(layer)]) {
    return std::make_unique<MoeFfn>(config, layer, names, weights, decoder);
  }
  return std::make_unique<DenseFfn>(config, layer, weights, decoder.scratch());
}

}  // namespace sluice::models
