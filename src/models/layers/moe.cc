#include "models/layers/moe.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "models/layers/ops.h"

namespace sluice::models {
namespace {

// Experts of a layer, copies counted each.
int64_t copies_of(const WeightStore& weights, const MoeConfig& moe) {
  return weights.expert_map() == nullptr ? moe.experts : weights.expert_map()->physical;
}

// Whether rows go to their experts by exact counts and not through a slab, by what all ranks know of the step's plan.
bool by_exact_counts(const Step& step) {
  if (step.batch.extend || step.groups == nullptr) return true;
  const std::span<const int64_t> tokens = step.batch.group_tokens;
  const int64_t most = tokens.empty() ? step.batch.n_tokens : *std::ranges::max_element(tokens);
  const int64_t members = step.groups->layout.attention_tp_size();
  return parallel::part_of(most, {0, members}).count > step.dispatcher->slab_tokens();
}

// `compute` from when `call` first waits for other ranks; after that `call` goes on.
template <class Compute>
Result<void> while_away(parallel::Overlap& overlap, const parallel::Overlap::Work& call, Compute compute) {
  const auto first = [&]() -> Result<void> {
    overlap.turns().yield();
    compute();
    return {};
  };
  return overlap.both(first, call);
}

}  // namespace

MoeFfn::MoeFfn(const ModelConfig& config, int64_t layer, const MoeNames& names, WeightStore& weights, Decoder& decoder)
    : Block(Residual(fmt::format("model.layers.{}.post_attention_layernorm.weight", layer), config, ffn_scale(config),
                     weights),
            weights.layout().a2a == parallel::MoeAllToAll::kNone ? Spread::kAllTokens : Spread::kOwnTokens),
      moe_(*config.moe),
      layer_number_(layer),
      own_(parallel::part_of(copies_of(weights, moe_), weights.layout().experts())),
      width_(parallel::part_of(moe_.expert_width, weights.layout().expert_tp()).count),
      hidden_(config.hidden_size),
      weights_(weights),
      routing_(decoder.routing()),
      layer_(decoder.routing().declare(copies_of(weights, moe_), moe_.top_k)),
      copies_(decoder.copy_chooser()) {
  const parallel::Layout& layout = weights.layout();
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const parallel::Slice columns = parallel::part_of(moe_.expert_width, layout.expert_tp());
  router_ = weights.linear({{fmt::format("{}{}", prefix, names.router), moe_.experts}}, hidden_);
  if (moe_.correction_bias) bias_ = weights.vector({{fmt::format("{}{}", prefix, names.bias), moe_.experts}});
  const moe::ExpertMap* map = weights.expert_map();
  // Names of tensors, whenever they are read.
  const auto of_expert = [=](int64_t copy, std::string_view matrix) {
    const int64_t e = map == nullptr ? copy : map->location[static_cast<size_t>(layer)][static_cast<size_t>(copy)];
    return fmt::format("{}{}{}.{}.weight", prefix, names.experts, e, matrix);
  };
  gate_up_ = weights.experts(
      own_,
      [=, width = moe_.expert_width](int64_t e) {
        return std::vector<Part>{part(of_expert(e, names.gate), width, columns),
                                 part(of_expert(e, names.up), width, columns)};
      },
      hidden_);
  down_ = weights.experts(own_,
                          [=, rows = hidden_](int64_t e) {
                            return std::vector<Part>{{of_expert(e, names.down), rows}};
                          },
                          width_, {.first = columns.first, .of = moe_.expert_width});
  decoder.add_experts({layer, gate_up_, down_});
  Scratch& scratch = decoder.scratch();
  if (moe_.shared_width > 0) {
    shared_.emplace(fmt::format("{}{}", prefix, names.shared), hidden_, moe_.shared_width, layout.shared_experts(),
                    weights, scratch);
  }

  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  const int64_t groups = layout.dp_size;  // whose tokens it gets
  // Where tokens are sent to their experts a rank gets its share of them, and rarely much more: what is beyond half of
  // it again is computed afterwards, which reads the weights once more. Elsewhere all may be for this rank.
  int64_t pairs = moe_.top_k * groups;
  if (layout.a2a == parallel::MoeAllToAll::kDeepEp && layout.tp_size > 1) {
    pairs = std::max(moe_.top_k, (3 * pairs + 2 * layout.tp_size - 1) / (2 * layout.tp_size));
  }
  const int64_t padding = weights.backend().group_padding(own_.count);
  logits_slot_ = scratch.declare("router_logits", moe_.experts * 4, groups);
  ids_slot_ = scratch.declare("expert_ids", moe_.top_k * 4, groups);
  copies_slot_ = scratch.declare("expert_copies", copies_ == nullptr ? 0 : moe_.top_k * 4, groups);
  shares_slot_ = scratch.declare("expert_shares", moe_.top_k * 4, groups);
  starts_slot_ = scratch.declare("expert_starts", 4, 0, own_.count);
  counts_slot_ = scratch.declare("expert_counts", 4, 0, own_.count);
  rows_slot_ = scratch.declare("expert_rows", moe_.top_k * 4, groups);
  expert_in_slot_ = scratch.declare("expert_in", hidden_ * element, pairs, padding);
  const moe::Dispatcher& dispatcher = decoder.dispatcher({.hidden = hidden_,
                                                          .experts = copies_of(weights, moe_),
                                                          .top_k = moe_.top_k,
                                                          .dtype = weights.dtype(),
                                                          .room = pairs});
  // Rows of a slab are anywhere in it.
  const int64_t extra = std::max(padding, dispatcher.slab_rows());
  expert_gate_up_slot_ =
      scratch.declare("expert_gate_up", ungated_row_bytes(weights.backend(), gate_up_.shape), pairs, extra);
  activated_slot_ = scratch.declare("expert_activated", width_ * element, pairs, extra);
  expert_out_slot_ = scratch.declare("expert_out", hidden_ * 4, pairs, padding);
}

Result<void> MoeFfn::run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                         float* out) const {
  moe::Tokens own = choose(context, step, x, n);
  own.out = out;
  moe::Tokens tokens;
  const auto dispatch = [&]() -> Result<void> {
    SLUICE_TRY(tokens, step.dispatcher->dispatch(context));
    return {};
  };
  const auto combine = [&] { return step.dispatcher->combine(context); };
  const bool overlaps = step.overlap != nullptr && shared_;
  if (shared_ && !overlaps) shared_->forward(context, step.scratch, x, out, n);
  step.progress(parallel::Phase::kDispatch);
  SLUICE_TRY_VOID(step.dispatcher->agree(context, own, by_exact_counts(step)));
  if (overlaps) {
    SLUICE_TRY_VOID(while_away(*step.overlap, dispatch, [&] { shared_->widen(context, step.scratch, x, n); }));
  } else {
    SLUICE_TRY_VOID(dispatch());
  }
  step.progress(parallel::Phase::kExperts);
  if (tokens.pieces.empty()) run_experts(context, step, tokens);
  int64_t first = 0;
  for (const int64_t count : tokens.pieces) {
    run_experts(context, step, part_of(tokens, first, count));
    first += count;
  }
  step.progress(parallel::Phase::kCombine);
  if (!overlaps) return combine();
  // What comes back is added after it, as elsewhere.
  return while_away(*step.overlap, combine, [&] { shared_->narrow(context, step.scratch, out, n); });
}

moe::Tokens MoeFfn::choose(const kernels::Context& context, const Step& step, const void* x, int64_t n) const {
  const kernels::Backend& backend = *context.backend;
  auto* logits = step.scratch.at<float>(logits_slot_);
  int32_t* recorded = routing_.chosen(layer_, step.routed_before);
  int32_t* ids = recorded == nullptr ? step.scratch.at<int32_t>(ids_slot_) : recorded;
  const int32_t* forced = routing_.forced(layer_, step.routed_before);
  const bool fills_up = spread() == Spread::kAllTokens && step.batch.padded_rows > 0;
  SLUICE_CHECK(forced == nullptr || !fills_up, "a forced routing has no rows that fill groups up");
  product(context, weights_, router_, x, logits, n);
  backend.route(context, {.logits = logits,
                          .bias = bias_ ? weights_.address(*bias_) : nullptr,
                          .ids = ids,
                          .weights = step.scratch.at<float>(shares_slot_),
                          .margins = routing_.margins(layer_, step.routed_before),
                          .forced = forced,
                          .group_rows = fills_up ? step.batch.padded_groups : nullptr,
                          .padded_rows = step.batch.padded_rows,
                          .n = n,
                          .experts = moe_.experts,
                          .top_k = moe_.top_k,
                          .score = moe_.score,
                          .groups = moe_.groups,
                          .kept_groups = moe_.kept_groups,
                          .group_score = moe_.group_score,
                          .renormalise = moe_.renormalise,
                          .scale = static_cast<float>(moe_.scale)});
  moe::Tokens tokens{
      .x = x, .ids = forced == nullptr ? ids : forced, .shares = step.scratch.at<float>(shares_slot_), .n = n};
  if (copies_ != nullptr) {
    auto* copies = step.scratch.at<int32_t>(copies_slot_);
    copies_->choose(context, layer_number_, step.number, step.routed_before, tokens.ids, copies, n, moe_.top_k);
    tokens.ids = copies;
  }
  return tokens;
}

moe::Tokens MoeFfn::part_of(const moe::Tokens& tokens, int64_t first, int64_t count) const {
  const auto row_bytes = hidden_ * static_cast<int64_t>(tensor::block_bytes(weights_.dtype()));
  return {.x = static_cast<const char*>(tokens.x) + first * row_bytes,
          .ids = tokens.ids + first * moe_.top_k,
          .shares = tokens.shares + first * moe_.top_k,
          .n = count,
          .out = tokens.out + first * hidden_};
}

void MoeFfn::run_experts(const kernels::Context& context, const Step& step, const moe::Tokens& tokens) const {
  const kernels::Backend& backend = *context.backend;
  const bool in_slab = tokens.slab_rows != nullptr;
  const int64_t copies = in_slab ? 1 : moe_.top_k, pairs = tokens.n * copies;
  // In a slab rows are sorted already; they are counted all the same.
  backend.sort_by_expert(context, {.ids = tokens.ids,
                                   .starts = step.scratch.at<int32_t>(starts_slot_),
                                   .counts = step.scratch.at<int32_t>(counts_slot_),
                                   .rows = step.scratch.at<int32_t>(rows_slot_),
                                   .loads = routing_.loads(layer_) + own_.first,
                                   .n_pairs = pairs,
                                   .first = own_.first,
                                   .experts = own_.count});
  const int32_t* starts = in_slab ? tokens.slab_starts : step.scratch.at<int32_t>(starts_slot_);
  const int32_t* rows = in_slab ? tokens.slab_rows : step.scratch.at<int32_t>(rows_slot_);
  const auto product = [&](const ExpertsWeight& weight, const void* from, float* to) {
    return kernels::GroupedLinearArgs{.shape = &weight.shape,
                                      .weights = weights_.address(weight),
                                      .weight_stride = weight.stride,
                                      .in = from,
                                      .starts = starts,
                                      .counts = step.scratch.at<int32_t>(counts_slot_),
                                      .out = to,
                                      .experts = own_.count};
  };
  const void* in = tokens.x;
  if (!in_slab) {
    in = step.scratch.at<void>(expert_in_slot_);
    backend.scatter_rows(context, {.in = tokens.x,
                                   .rows = rows,
                                   .out = step.scratch.at<void>(expert_in_slot_),
                                   .dtype = weights_.dtype(),
                                   .n = tokens.n,
                                   .copies = copies,
                                   .width = hidden_});
  }
  auto* activated = step.scratch.at<void>(activated_slot_);
  backend.gated_grouped_linear(context, {.product = product(gate_up_, in, step.scratch.at<float>(expert_gate_up_slot_)),
                                         .out = activated,
                                         .out_dtype = weights_.dtype(),
                                         .rows = rows,
                                         .n = pairs});
  if (in_slab) return backend.grouped_linear(context, product(down_, activated, tokens.out));
  auto* out = step.scratch.at<float>(expert_out_slot_);
  backend.grouped_linear(context, product(down_, activated, out));
  backend.combine_rows(context, {.in = out,
                                 .rows = rows,
                                 .weights = tokens.shares,
                                 .out = tokens.out,
                                 .n = tokens.n,
                                 .copies = copies,
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
