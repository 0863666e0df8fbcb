#include "models/layers/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "models/layers/ops.h"

namespace sluice::models {

GroupedQueryAttention::GroupedQueryAttention(const ModelConfig& config, int64_t layer, WeightStore& weights,
                                             Scratch& scratch, KvCache& kv_cache)
    : heads_(config.num_heads),
      kv_heads_(config.num_kv_heads),
      dim_(config.head_dim),
      rotary_(config.rotary_dim),
      stride_((heads_ + 2 * kv_heads_) * dim_),
      interleaved_(config.rope.interleaved),
      epsilon_(config.rms_norm_eps),
      weights_(weights),
      residual_(fmt::format("model.layers.{}.input_layernorm.weight", layer), config,
                config.lightning ? std::optional(config.lightning->softmax) : std::nullopt, weights, scratch) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = heads_ * dim_;
  const int64_t kv = kv_heads_ * dim_;
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const std::string attention = prefix + "self_attn.";
  qkv_ = weights.linear(
      {{attention + "q_proj.weight", q}, {attention + "k_proj.weight", kv}, {attention + "v_proj.weight", kv}}, hidden);
  if (config.qkv_bias) {
    qkv_bias_ = weights.vector(
        {{attention + "q_proj.bias", q}, {attention + "k_proj.bias", kv}, {attention + "v_proj.bias", kv}});
  }
  if (config.qk_norm != QkNorm::kNone) {
    const bool each = config.qk_norm == QkNorm::kEachHead;
    q_norm_ = weights.vector({{attention + "q_norm.weight", each ? dim_ : q}});
    k_norm_ = weights.vector({{attention + "k_norm.weight", each ? dim_ : kv}});
  }
  o_ = weights.linear({{attention + "o_proj.weight", hidden}}, q);
  keys_ = kv_cache.declare(kv);
  values_ = kv_cache.declare(kv);
  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  qkv_slot_ = scratch.declare("qkv", stride_ * 4);
  attended_slot_ = scratch.declare("attended", q * element);
}

void GroupedQueryAttention::forward(const kernels::Context& context, const Step& step) const {
  const kernels::Backend& backend = *context.backend;
  const ForwardBatch& batch = step.batch;
  auto* attended = step.scratch.at<void>(attended_slot_);
  auto* q = step.scratch.at<float>(qkv_slot_);  // [n, heads, dim]
  float* k = q + heads_ * dim_;                 // [n, kv_heads, dim]
  float* v = k + kv_heads_ * dim_;              // [n, kv_heads, dim]

  const void* x = residual_.enter(context, step);
  product(context, weights_, qkv_, x, q, batch.n_tokens, qkv_bias_ ? weights_.address(*qkv_bias_) : nullptr);
  if (q_norm_) {
    norm_heads(context, q, *q_norm_, batch.n_tokens, heads_);
    norm_heads(context, k, *k_norm_, batch.n_tokens, kv_heads_);
  }
  backend.rope(context, {.heads = q,
                         .cos_sin = step.cos_sin,
                         .n = batch.n_tokens,
                         .n_heads = heads_ + kv_heads_,  // keys follow the queries
                         .head_dim = dim_,
                         .half = rotary_ / 2,
                         .stride = stride_,
                         .interleaved = interleaved_});
  backend.store_kv(context, {.k = k,
                             .v = v,
                             .slots = batch.kv_slots,
                             .k_cache = step.kv.at(keys_),
                             .v_cache = step.kv.at(values_),
                             .dtype = step.kv.dtype(),
                             .n = batch.n_tokens,
                             .width = kv_heads_ * dim_,
                             .stride = stride_});
  backend.attention(context, {.q = q,
                              .k_cache = step.kv.at(keys_),
                              .v_cache = step.kv.at(values_),
                              .dtype = step.kv.dtype(),
                              .slot_table = batch.slot_table,
                              .table_rows = batch.table_rows,
                              .query_start = batch.query_start,
                              .seq_lens = batch.seq_lens,
                              .out = attended,
                              .n_seqs = batch.n_seqs,
                              .n_heads = heads_,
                              .n_kv_heads = kv_heads_,
                              .head_dim = dim_,
                              .stride = stride_,
                              .table_width = batch.table_width,
                              .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim_)))});
  product(context, weights_, o_, attended, step.hidden, batch.n_tokens, nullptr, /*accumulate=*/true);
  residual_.leave(context, step);
}

void GroupedQueryAttention::norm_heads(const kernels::Context& context, float* heads, const VectorWeight& weight,
                                       int64_t n, int64_t n_heads) const {
  context.backend->rms_norm(context, {.in = heads,
                                      .weight = weights_.address(weight),
                                      .out = heads,
                                      .out_dtype = kernels::DType::kF32,
                                      .n = n,
                                      .groups = n_heads * dim_ / weight.size,
                                      .width = weight.size,
                                      .in_stride = stride_,
                                      .out_stride = stride_,
                                      .epsilon = static_cast<float>(epsilon_)});
}

}  // namespace sluice::models
