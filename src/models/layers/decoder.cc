#include "models/layers/decoder.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

namespace sluice::models {
namespace {

using kernels::Context;

struct LayerWeights {
  VectorWeight input_norm;  // [hidden]
  LinearWeight qkv;         // [(heads + 2 kv_heads) * head_dim, hidden]
  std::optional<VectorWeight> qkv_bias;
  std::optional<VectorWeight> q_norm, k_norm;  // [head_dim]
  LinearWeight o;                              // [hidden, heads * head_dim]
  VectorWeight post_norm;                      // [hidden]
  LinearWeight gate_up;                        // [2 * intermediate, hidden]
  LinearWeight down;                           // [hidden, intermediate]
};

class DenseDecoder final : public Decoder {
 public:
  DenseDecoder(const ModelConfig& config, WeightStore& weights) : config_(config), weights_(weights) {
    const int64_t q = config.num_heads * config.head_dim;
    const int64_t kv = config.num_kv_heads * config.head_dim;
    const int64_t hidden = config.hidden_size;
    embedding_ = weights.table("model.embed_tokens.weight", config.vocab_size, hidden);
    for (int64_t i = 0; i < config.num_layers; ++i) {
      const std::string layer = fmt::format("model.layers.{}.", i);
      const std::string attention = layer + "self_attn.";
      LayerWeights w;
      w.input_norm = weights.vector({{layer + "input_layernorm.weight", hidden}});
      w.qkv = weights.linear(
          {{attention + "q_proj.weight", q}, {attention + "k_proj.weight", kv}, {attention + "v_proj.weight", kv}},
          hidden);
      if (config.qkv_bias) {
        w.qkv_bias = weights.vector(
            {{attention + "q_proj.bias", q}, {attention + "k_proj.bias", kv}, {attention + "v_proj.bias", kv}});
      }
      if (config.qk_norm) {
        w.q_norm = weights.vector({{attention + "q_norm.weight", config.head_dim}});
        w.k_norm = weights.vector({{attention + "k_norm.weight", config.head_dim}});
      }
      w.o = weights.linear({{attention + "o_proj.weight", hidden}}, q);
      w.post_norm = weights.vector({{layer + "post_attention_layernorm.weight", hidden}});
      w.gate_up = weights.linear({{layer + "mlp.gate_proj.weight", config.intermediate_size},
                                  {layer + "mlp.up_proj.weight", config.intermediate_size}},
                                 hidden);
      w.down = weights.linear({{layer + "mlp.down_proj.weight", hidden}}, config.intermediate_size);
      layers_.push_back(w);
    }
    final_norm_ = weights.vector({{"model.norm.weight", hidden}});
    head_ = weights.linear(
        {{config.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", config.vocab_size}}, hidden);
    inverse_frequencies_ = weights.constant("rope.inverse_frequencies", inverse_frequencies(config));
  }

  void forward(const Context& context, const ForwardBatch& batch, const KvCache& kv, Buffers& buffers) const override {
    const kernels::Backend& backend = *context.backend;
    backend.embed(context, {.table = weights_.address(embedding_),
                            .dtype = embedding_.dtype,
                            .ids = batch.token_ids,
                            .out = buffers.hidden,
                            .n = batch.n_tokens,
                            .width = config_.hidden_size});
    backend.rope_angles(context, {.positions = batch.positions,
                                  .inverse_frequencies = weights_.address(inverse_frequencies_),
                                  .cos_sin = buffers.cos_sin,
                                  .n = batch.n_tokens,
                                  .half = config_.head_dim / 2,
                                  .scale = static_cast<float>(config_.rope.angle_scale)});
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      attention(context, batch, kv, buffers, layer);
      ffn(context, batch, buffers, layers_[static_cast<size_t>(layer)]);
    }
    // Only the rows whose logits are wanted go through the head.
    backend.gather_rows(context, {.in = buffers.hidden,
                                  .rows = batch.logit_rows,
                                  .out = buffers.logit_hidden,
                                  .n = batch.n_logits,
                                  .width = config_.hidden_size});
    norm(context, buffers.logit_hidden, final_norm_, buffers.logit_normed, batch.n_logits);
    product(context, head_, buffers.logit_normed, buffers.logits, batch.n_logits);
  }

 private:
  void attention(const Context& context, const ForwardBatch& batch, const KvCache& kv, Buffers& buffers,
                 int64_t layer) const {
    const kernels::Backend& backend = *context.backend;
    const LayerWeights& w = layers_[static_cast<size_t>(layer)];
    const int64_t dim = config_.head_dim;
    const int64_t stride = (config_.num_heads + 2 * config_.num_kv_heads) * dim;  // of a row of qkv
    float* q = buffers.qkv;                                                       // [n, heads, dim]
    float* k = q + config_.num_heads * dim;                                       // [n, kv_heads, dim]
    float* v = k + config_.num_kv_heads * dim;                                    // [n, kv_heads, dim]

    norm(context, buffers.hidden, w.input_norm, buffers.normed, batch.n_tokens);
    product(context, w.qkv, buffers.normed, buffers.qkv, batch.n_tokens,
            w.qkv_bias ? weights_.address(*w.qkv_bias) : nullptr);
    if (w.q_norm) {
      head_norm(context, q, *w.q_norm, batch.n_tokens, config_.num_heads, stride);
      head_norm(context, k, *w.k_norm, batch.n_tokens, config_.num_kv_heads, stride);
    }
    kernels::RopeArgs rope{.heads = q,
                           .cos_sin = buffers.cos_sin,
                           .n = batch.n_tokens,
                           .n_heads = config_.num_heads + config_.num_kv_heads,  // keys follow the queries
                           .head_dim = dim,
                           .half = dim / 2,
                           .stride = stride,
                           .interleaved = config_.rope.interleaved};
    backend.rope(context, rope);
    backend.store_kv(context, {.k = k,
                               .v = v,
                               .slots = batch.kv_slots,
                               .k_cache = kv.keys(layer),
                               .v_cache = kv.values(layer),
                               .dtype = kv.dtype,
                               .n = batch.n_tokens,
                               .width = kv.width,
                               .stride = stride});
    backend.attention(context, {.q = q,
                                .k_cache = kv.keys(layer),
                                .v_cache = kv.values(layer),
                                .dtype = kv.dtype,
                                .slot_table = batch.slot_table,
                                .table_rows = batch.table_rows,
                                .query_start = batch.query_start,
                                .seq_lens = batch.seq_lens,
                                .out = buffers.attention,
                                .n_seqs = batch.n_seqs,
                                .n_heads = config_.num_heads,
                                .n_kv_heads = config_.num_kv_heads,
                                .head_dim = dim,
                                .stride = stride,
                                .table_width = batch.table_width,
                                .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)))});
    product(context, w.o, buffers.attention, buffers.hidden, batch.n_tokens, nullptr, /*accumulate=*/true);
  }

  void ffn(const Context& context, const ForwardBatch& batch, Buffers& buffers, const LayerWeights& w) const {
    norm(context, buffers.hidden, w.post_norm, buffers.normed, batch.n_tokens);
    product(context, w.gate_up, buffers.normed, buffers.gate_up, batch.n_tokens);
    context.backend->silu_mul(context, {.gate_up = buffers.gate_up,
                                        .out = buffers.activated,
                                        .out_dtype = weights_.dtype(),
                                        .n = batch.n_tokens,
                                        .width = config_.intermediate_size});
    product(context, w.down, buffers.activated, buffers.hidden, batch.n_tokens, nullptr, /*accumulate=*/true);
  }

  // Rows of the residual stream, normed for a product.
  void norm(const Context& context, const float* in, const VectorWeight& weight, void* out, int64_t n) const {
    context.backend->rms_norm(context, {.in = in,
                                        .weight = weights_.address(weight),
                                        .out = out,
                                        .out_dtype = weights_.dtype(),
                                        .n = n,
                                        .width = config_.hidden_size,
                                        .in_stride = config_.hidden_size,
                                        .out_stride = config_.hidden_size,
                                        .epsilon = static_cast<float>(config_.rms_norm_eps)});
  }
  // Each head by itself, in place.
  void head_norm(const Context& context, float* heads, const VectorWeight& weight, int64_t n, int64_t n_heads,
                 int64_t stride) const {
    context.backend->rms_norm(context, {.in = heads,
                                        .weight = weights_.address(weight),
                                        .out = heads,
                                        .out_dtype = kernels::DType::kF32,
                                        .n = n,
                                        .groups = n_heads,
                                        .width = config_.head_dim,
                                        .in_stride = stride,
                                        .out_stride = stride,
                                        .epsilon = static_cast<float>(config_.rms_norm_eps)});
  }
  void product(const Context& context, const LinearWeight& weight, const void* in, float* out, int64_t n,
               const float* bias = nullptr, bool accumulate = false) const {
    context.backend->linear(context, {.shape = &weight.shape,
                                      .weight = weights_.address(weight),
                                      .in = in,
                                      .out = out,
                                      .n = n,
                                      .bias = bias,
                                      .accumulate = accumulate});
  }

  const ModelConfig config_;
  const WeightStore& weights_;
  TableWeight embedding_;
  std::vector<LayerWeights> layers_;
  VectorWeight final_norm_;
  LinearWeight head_;
  VectorWeight inverse_frequencies_;
};

}  // namespace

std::unique_ptr<Decoder> make_dense_decoder(const ModelConfig& config, WeightStore& weights) {
  return std::make_unique<DenseDecoder>(config, weights);
}

Result<std::unique_ptr<Buffers>> Buffers::create(const kernels::Backend& backend, const ModelConfig& config,
                                                 kernels::DType dtype, int64_t max_tokens, int64_t max_logits) {
  std::unique_ptr<Buffers> buffers(new Buffers(backend));
  const int64_t tokens = backend.padded_rows(max_tokens);
  const int64_t logits = backend.padded_rows(max_logits);
  const auto element = static_cast<int64_t>(tensor::block_bytes(dtype));
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  const auto take = [&](auto*& pointer, int64_t bytes) -> Result<void> {
    SLUICE_TRY(void* memory, backend.allocate(static_cast<size_t>(bytes)));
    buffers->owned_.emplace_back(memory, static_cast<size_t>(bytes));
    pointer = static_cast<std::remove_reference_t<decltype(pointer)>>(memory);
    return {};
  };
  SLUICE_TRY_VOID(take(buffers->hidden, tokens * config.hidden_size * 4));
  SLUICE_TRY_VOID(take(buffers->normed, tokens * config.hidden_size * element));
  SLUICE_TRY_VOID(take(buffers->cos_sin, tokens * config.head_dim * 4));
  SLUICE_TRY_VOID(take(buffers->qkv, tokens * (q + 2 * kv) * 4));
  SLUICE_TRY_VOID(take(buffers->attention, tokens * q * element));
  SLUICE_TRY_VOID(take(buffers->gate_up, tokens * 2 * config.intermediate_size * 4));
  SLUICE_TRY_VOID(take(buffers->activated, tokens * config.intermediate_size * element));
  SLUICE_TRY_VOID(take(buffers->logit_hidden, logits * config.hidden_size * 4));
  SLUICE_TRY_VOID(take(buffers->logit_normed, logits * config.hidden_size * element));
  SLUICE_TRY_VOID(take(buffers->logits, logits * config.vocab_size * 4));
  return buffers;
}

Buffers::~Buffers() {
  for (const auto& [memory, bytes] : owned_) backend_.release(memory, bytes);
}

}  // namespace sluice::models
