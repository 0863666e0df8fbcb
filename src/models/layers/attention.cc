#include "models/layers/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "models/layers/ops.h"

namespace sluice::models {

namespace {

parallel::Slice query_heads(const ModelConfig& config, const parallel::Layout& layout) {
  return parallel::part_of(config.num_heads, layout.attention_tp());
}

parallel::Slice times(const parallel::Slice& heads, int64_t dim) { return {heads.first * dim, heads.count * dim}; }

}  // namespace

parallel::Slice key_heads(const ModelConfig& config, const parallel::Layout& layout) {
  const parallel::Slice queries = query_heads(config, layout);
  const int64_t group = config.num_heads / config.num_kv_heads;  // query heads per key head
  return {queries.first / group, std::max<int64_t>(1, queries.count / group)};
}

GroupedQueryAttention::GroupedQueryAttention(const ModelConfig& config, int64_t layer, WeightStore& weights,
                                             Scratch& scratch, KvCache& kv_cache)
    : Block(Residual(fmt::format("model.layers.{}.input_layernorm.weight", layer), config,
                     config.lightning ? std::optional(config.lightning->softmax) : std::nullopt, weights),
            Spread::kAttention),
      heads_(query_heads(config, weights.layout()).count),
      kv_heads_(key_heads(config, weights.layout()).count),
      dim_(config.head_dim),
      rotary_(config.rotary_dim),
      stride_((heads_ + 2 * kv_heads_) * dim_),
      interleaved_(config.rope.interleaved),
      all_heads_(config.num_heads),
      all_kv_heads_(config.num_kv_heads),
      norms_all_heads_(config.qk_norm == QkNorm::kAllHeads),
      first_of_its_keys_(query_heads(config, weights.layout()).first % (config.num_heads / config.num_kv_heads) == 0),
      epsilon_(config.rms_norm_eps),
      weights_(weights) {
  const int64_t hidden = config.hidden_size;
  const int64_t q = heads_ * dim_;
  const int64_t kv = kv_heads_ * dim_;
  const int64_t all_q = config.num_heads * dim_, all_kv = config.num_kv_heads * dim_;
  const parallel::Slice q_rows = times(query_heads(config, weights.layout()), dim_);
  const parallel::Slice kv_rows = times(key_heads(config, weights.layout()), dim_);
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  const std::string attention = prefix + "self_attn.";
  const auto stacked = [&](const char* kind) {
    return std::vector<Part>{part(fmt::format("{}q_proj.{}", attention, kind), all_q, q_rows),
                             part(fmt::format("{}k_proj.{}", attention, kind), all_kv, kv_rows),
                             part(fmt::format("{}v_proj.{}", attention, kind), all_kv, kv_rows)};
  };
  qkv_ = weights.linear(stacked("weight"), hidden);
  if (config.qkv_bias) qkv_bias_ = weights.vector(stacked("bias"));
  if (config.qk_norm != QkNorm::kNone) {
    const bool each = config.qk_norm == QkNorm::kEachHead;
    q_norm_ = weights.vector(
        {each ? Part{attention + "q_norm.weight", dim_} : part(attention + "q_norm.weight", all_q, q_rows)});
    k_norm_ = weights.vector(
        {each ? Part{attention + "k_norm.weight", dim_} : part(attention + "k_norm.weight", all_kv, kv_rows)});
  }
  o_ = weights.linear({{attention + "o_proj.weight", hidden}}, q, {.first = q_rows.first, .of = all_q});
  keys_ = kv_cache.declare(kv, dim_);
  values_ = kv_cache.declare(kv, dim_);
  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  qkv_slot_ = scratch.declare("qkv", stride_ * 4);
  attended_slot_ = scratch.declare("attended", q * element);
  squares_slot_ = scratch.declare("squares", 4, 2);
}

Result<void> GroupedQueryAttention::run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                                        float* out) const {
  const kernels::Backend& backend = *context.backend;
  const ForwardBatch& batch = step.batch;
  auto* attended = step.scratch.at<void>(attended_slot_);
  auto* q = step.scratch.at<float>(qkv_slot_);  // [n, heads, dim]
  float* k = q + heads_ * dim_;                 // [n, kv_heads, dim]
  float* v = k + kv_heads_ * dim_;              // [n, kv_heads, dim]

  product(context, weights_, qkv_, x, q, n, qkv_bias_ ? weights_.address(*qkv_bias_) : nullptr);
  if (q_norm_) SLUICE_TRY_VOID(norm(context, step, q, k, n));
  backend.rope(context, {.heads = q,
                         .cos_sin = step.cos_sin,
                         .n = n,
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
                             .row = step.kv.row(keys_),
                             .n = n,
                             .stride = stride_});
  backend.attention(context, {.q = q,
                              .k_cache = step.kv.at(keys_),
                              .v_cache = step.kv.at(values_),
                              .row = step.kv.row(keys_),
                              .dtype = weights_.dtype(),
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
  product(context, weights_, o_, attended, out, n, nullptr, /*accumulate=*/true);
  return {};
}

Result<void> GroupedQueryAttention::norm(const kernels::Context& context, const Step& step, float* q, float* k,
                                         int64_t n) const {
  if (!norms_all_heads_ || heads_ == all_heads_) {
    norm_heads(context, q, *q_norm_, n, heads_);
    norm_heads(context, k, *k_norm_, n, kv_heads_);
    return {};
  }
  const kernels::Backend& backend = *context.backend;
  auto* squares = step.scratch.at<float>(squares_slot_);
  backend.square_sum(context, {.in = q, .out = squares, .n = n, .width = heads_ * dim_, .in_stride = stride_});
  // Key heads that several ranks have count once.
  if (first_of_its_keys_) {
    backend.square_sum(context, {.in = k, .out = squares + n, .n = n, .width = kv_heads_ * dim_, .in_stride = stride_});
  } else {
    backend.clear(context, squares + n, static_cast<size_t>(n) * sizeof(float));
  }
  SLUICE_TRY_VOID(step.groups->attention_tp->all_reduce(context, parallel::Element::kF32, squares, squares, 2 * n));
  const auto norm_part = [&](float* heads, const VectorWeight& weight, const float* sums, int64_t all_heads) {
    backend.rms_norm(context, {.in = heads,
                               .weight = weights_.address(weight),
                               .out = heads,
                               .n = n,
                               .width = weight.size,
                               .in_stride = stride_,
                               .out_stride = stride_,
                               .epsilon = static_cast<float>(epsilon_),
                               .square_sums = sums,
                               .whole_width = all_heads * dim_});
  };
  norm_part(q, *q_norm_, squares, all_heads_);
  norm_part(k, *k_norm_, squares + n, all_kv_heads_);
  return {};
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
