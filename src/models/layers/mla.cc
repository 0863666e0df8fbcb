#include "models/layers/mla.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "models/config_fields.h"
#include "models/layers/ops.h"

namespace sluice::models {

Result<void> read_mla(const nlohmann::json& json, ModelConfig& config) {
  Fields fields(json);
  MlaConfig mla;
  mla.q_lora_rank = fields.whole("q_lora_rank", 1, 0);
  mla.kv_lora_rank = fields.whole("kv_lora_rank", 1);
  mla.qk_nope_head_dim = fields.whole("qk_nope_head_dim", 1);
  mla.v_head_dim = fields.whole("v_head_dim", 1);
  config.rotary_dim = fields.whole("qk_rope_head_dim", 2);
  // The key heads are those that the latent is expanded to: as many as there are query heads.
  const int64_t key_heads = fields.whole("num_key_value_heads", 1, config.num_heads);
  const bool interleaved = fields.flag("rope_interleave", true);
  if (fields.error()) return *fields.error();
  for (const int64_t size :
       {mla.q_lora_rank, mla.kv_lora_rank, mla.qk_nope_head_dim, mla.v_head_dim, config.rotary_dim}) {
    if (size > 1 << 14) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("config.json: {} is too large for a rank of latent attention", size)};
    }
  }
  if (key_heads != config.num_heads) {
    return unsupported("num_key_value_heads", "other than num_attention_heads is not supported with latent attention");
  }
  if (!interleaved) return unsupported("rope_interleave", "false is not supported");
  config.rope.interleaved = true;
  config.head_dim = mla.qk_nope_head_dim + config.rotary_dim;
  config.mla = mla;
  return {};
}

bool expanding_is_cheaper(int64_t queries, int64_t length, const LatentSizes& sizes) {
  const auto n = static_cast<double>(queries), l = static_cast<double>(length);
  const double pairs = n * l - n * (n - 1) / 2;  // of a query and a position that it sees
  const auto up = static_cast<double>(sizes.latent * (sizes.nope + sizes.value));
  const double absorbed = n * up + pairs * static_cast<double>(2 * sizes.latent + sizes.rotary);
  const double expanded = l * up + pairs * static_cast<double>(sizes.nope + sizes.rotary + sizes.value);
  return expanded < absorbed;
}

LatentAttention::LatentAttention(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch,
                                 KvCache& kv)
    : Block(Residual(fmt::format("model.layers.{}.input_layernorm.weight", layer), config, std::nullopt, weights),
            Spread::kAttention),
      heads_(parallel::part_of(config.num_heads, weights.layout().attention_tp()).count),
      nope_(config.mla->qk_nope_head_dim),
      rotary_(config.rotary_dim),
      latent_(config.mla->kv_lora_rank),
      value_(config.mla->v_head_dim),
      q_lora_(config.mla->q_lora_rank),
      q_columns_(q_lora_ > 0 ? q_lora_ : heads_ * (nope_ + rotary_)),
      epsilon_(config.rms_norm_eps),
      scale_(static_cast<float>(config.rope.score_scale / std::sqrt(static_cast<double>(nope_ + rotary_)))),
      weights_(weights) {
  const int64_t hidden = config.hidden_size;
  const std::string attention = fmt::format("model.layers.{}.self_attn.", layer);
  const parallel::Slice own = parallel::part_of(config.num_heads, weights.layout().attention_tp());
  const int64_t query = nope_ + rotary_;
  const auto queries_of = [&](const char* name) {
    return part(attention + name, config.num_heads * query, {own.first * query, own.count * query});
  };
  // Rows [first, first + rows) of each head of a tensor that has `of` in each.
  const auto of_heads = [&](const char* name, int64_t of, int64_t first, int64_t rows, bool transposed) {
    return HeadPart{.name = attention + name,
                    .of_heads = config.num_heads,
                    .first_head = own.first,
                    .heads = own.count,
                    .head_rows = of,
                    .first = first,
                    .rows = rows,
                    .transposed = transposed};
  };
  down_ = weights.linear({q_lora_ > 0 ? Part{attention + "q_a_proj.weight", q_lora_} : queries_of("q_proj.weight"),
                          {attention + "kv_a_proj_with_mqa.weight", latent_ + rotary_}},
                         hidden);
  if (q_lora_ > 0) {
    q_norm_ = weights.vector({{attention + "q_a_layernorm.weight", q_lora_}});
    q_up_ = weights.linear({queries_of("q_b_proj.weight")}, q_lora_);
  }
  latent_norm_ = weights.vector({{attention + "kv_a_layernorm.weight", latent_}});
  if (config.mla->split_up) {
    const char *keys = "k_b_proj.weight", *values = "v_b_proj.weight";  // per head: W_k transposed; W_v
    absorb_ = weights.heads(of_heads(keys, latent_, 0, latent_, /*transposed=*/false), nope_);
    key_up_ = weights.heads(of_heads(keys, latent_, 0, latent_, /*transposed=*/true), nope_);
    value_up_ = weights.heads(of_heads(values, value_, 0, value_, /*transposed=*/false), latent_);
  } else {
    const char* up = "kv_b_proj.weight";  // per head: nope rows of W_k, then value rows of W_v
    const int64_t both = nope_ + value_;
    absorb_ = weights.heads(of_heads(up, both, 0, nope_, /*transposed=*/true), latent_);
    key_up_ = weights.heads(of_heads(up, both, 0, nope_, /*transposed=*/false), latent_);
    value_up_ = weights.heads(of_heads(up, both, nope_, value_, /*transposed=*/false), latent_);
  }
  o_ = weights.linear({{attention + "o_proj.weight", hidden}}, heads_ * value_,
                      {.first = own.first * value_, .of = config.num_heads * value_});
  cache_ = kv.declare(latent_ + rotary_, std::gcd(latent_, rotary_));
  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  down_slot_ = scratch.declare("mla.down", (q_columns_ + latent_ + rotary_) * 4);
  q_normed_slot_ = scratch.declare("mla.q_normed", q_lora_ * element);
  q_slot_ = scratch.declare("mla.q", q_lora_ > 0 ? heads_ * (nope_ + rotary_) * 4 : 0);
  q_latent_slot_ = scratch.declare("mla.q_latent", heads_ * latent_ * 4);
  mixed_slot_ = scratch.declare("mla.mixed", heads_ * latent_ * 4);
  attended_slot_ = scratch.declare("attended", heads_ * value_ * element);
}

void LatentAttention::project(const kernels::Context& context, const Step& step, const void* x) const {
  const kernels::Backend& backend = *context.backend;
  const int64_t n = step.batch.n_tokens;
  const int64_t stride = q_columns_ + latent_ + rotary_;
  auto* down = step.scratch.at<float>(down_slot_);  // [n, stride]: q_columns, latent, rotary key
  float* latent = down + q_columns_;
  float* q = down;  // [n, heads, nope + rotary]
  int64_t q_stride = stride;

  product(context, weights_, down_, x, down, n);
  if (q_lora_ > 0) {
    auto* q_normed = step.scratch.at<void>(q_normed_slot_);
    q = step.scratch.at<float>(q_slot_);
    q_stride = heads_ * (nope_ + rotary_);
    backend.rms_norm(context, {.in = down,
                               .weight = weights_.address(*q_norm_),
                               .out = q_normed,
                               .out_dtype = weights_.dtype(),
                               .n = n,
                               .width = q_lora_,
                               .in_stride = stride,
                               .out_stride = q_lora_,
                               .epsilon = static_cast<float>(epsilon_)});
    product(context, weights_, *q_up_, q_normed, q, n);
  }
  backend.rms_norm(context, {.in = latent,
                             .weight = weights_.address(latent_norm_),
                             .out = latent,
                             .n = n,
                             .width = latent_,
                             .in_stride = stride,
                             .out_stride = stride,
                             .epsilon = static_cast<float>(epsilon_)});
  kernels::RopeArgs rope{.heads = q + nope_,
                         .cos_sin = step.cos_sin,
                         .n = n,
                         .n_heads = heads_,
                         .head_dim = nope_ + rotary_,
                         .half = rotary_ / 2,
                         .stride = q_stride,
                         .interleaved = true};
  backend.rope(context, rope);
  rope.heads = latent + latent_;
  rope.n_heads = 1;
  rope.stride = stride;
  backend.rope(context, rope);
  backend.store_kv(context, {.k = latent,
                             .slots = step.batch.kv_slots,
                             .k_cache = step.kv.at(cache_),
                             .row = step.kv.row(cache_),
                             .n = n,
                             .stride = stride});
}

Result<void> LatentAttention::run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                                  float* out) const {
  const ForwardBatch& batch = step.batch;
  project(context, step, x);
  const auto expands = [&](int64_t s) {
    const int64_t queries = batch.host_query_start[s + 1] - batch.host_query_start[s];
    return expanding_is_cheaper(queries, batch.host_seq_lens[s],
                                {.nope = nope_, .rotary = rotary_, .latent = latent_, .value = value_});
  };
  // Neighbours of a kind go together.
  for (int64_t first = 0, last; first < batch.n_seqs; first = last) {
    const bool expanded = expands(first);
    for (last = first + 1; last < batch.n_seqs && expands(last) == expanded;) ++last;
    expanded ? attend_expanded(context, step, first, last) : attend_absorbed(context, step, first, last);
  }
  product(context, weights_, o_, step.scratch.at<void>(attended_slot_), out, n, nullptr, /*accumulate=*/true);
  return {};
}

void LatentAttention::attend_absorbed(const kernels::Context& context, const Step& step, int64_t first,
                                      int64_t last) const {
  const kernels::Backend& backend = *context.backend;
  const ForwardBatch& batch = step.batch;
  const int64_t row = batch.host_query_start[first], rows = batch.host_query_start[last] - row;
  const float* q = queries(step);  // [n, heads, nope + rotary]
  auto* q_latent = step.scratch.at<float>(q_latent_slot_);
  auto* mixed = step.scratch.at<float>(mixed_slot_);
  const auto element = static_cast<int64_t>(tensor::block_bytes(weights_.dtype()));
  backend.head_linear(context, {.shape = &absorb_.shape,
                                .weights = weights_.address(absorb_),
                                .weight_stride = absorb_.stride,
                                .in = q + row * query_stride(),
                                .in_stride = query_stride(),
                                .in_head_stride = nope_ + rotary_,
                                .out = q_latent + row * heads_ * latent_,
                                .n = rows,
                                .n_heads = heads_});
  backend.latent_attention(context, {.q_latent = q_latent,
                                     .q_rotary = q + nope_,
                                     .q_rotary_stride = query_stride(),
                                     .q_rotary_head_stride = nope_ + rotary_,
                                     .cache = step.kv.at(cache_),
                                     .row = step.kv.row(cache_),
                                     .dtype = weights_.dtype(),
                                     .slot_table = batch.slot_table,
                                     .table_rows = batch.table_rows + first,
                                     .query_start = batch.query_start + first,
                                     .seq_lens = batch.seq_lens + first,
                                     .out = mixed,
                                     .n_seqs = last - first,
                                     .n_heads = heads_,
                                     .latent = latent_,
                                     .rotary = rotary_,
                                     .table_width = batch.table_width,
                                     .scale = scale_});
  backend.head_linear(context, {.shape = &value_up_.shape,
                                .weights = weights_.address(value_up_),
                                .weight_stride = value_up_.stride,
                                .in = mixed + row * heads_ * latent_,
                                .in_stride = heads_ * latent_,
                                .in_head_stride = latent_,
                                .out = step.scratch.at<char>(attended_slot_) + row * heads_ * value_ * element,
                                .out_dtype = weights_.dtype(),
                                .n = rows,
                                .n_heads = heads_});
}

void LatentAttention::attend_expanded(const kernels::Context& context, const Step& step, int64_t first,
                                      int64_t last) const {
  const ForwardBatch& batch = step.batch;
  context.backend->expanded_attention(context, {.q = queries(step),
                                                .q_stride = query_stride(),
                                                .cache = step.kv.at(cache_),
                                                .row = step.kv.row(cache_),
                                                .dtype = weights_.dtype(),
                                                .key_shape = &key_up_.shape,
                                                .keys = weights_.address(key_up_),
                                                .key_stride = key_up_.stride,
                                                .value_shape = &value_up_.shape,
                                                .values = weights_.address(value_up_),
                                                .value_stride = value_up_.stride,
                                                .slot_table = batch.slot_table,
                                                .table_rows = batch.table_rows + first,
                                                .query_start = batch.query_start + first,
                                                .seq_lens = batch.seq_lens + first,
                                                .out = step.scratch.at<void>(attended_slot_),
                                                .n_seqs = last - first,
                                                .n_heads = heads_,
                                                .rotary = rotary_,
                                                .table_width = batch.table_width,
                                                .scale = scale_});
}

}  // namespace sluice::models
