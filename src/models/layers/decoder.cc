#include "models/layers/decoder.h"

#include "models/layers/attention.h"
#include "models/layers/ffn.h"
#include "models/layers/ops.h"

namespace sluice::models {

Decoder::Decoder(const ModelConfig& config, WeightStore& weights)
    : config_(config),
      weights_(weights),
      scratch_(weights.backend()),
      kv_(weights.backend(), weights.dtype()),
      states_(weights.backend()),
      routing_(weights.backend()) {
  const int64_t hidden = config.hidden_size;
  embedding_ = weights.table("model.embed_tokens.weight", config.vocab_size, hidden);
  final_norm_ = weights.vector({{"model.norm.weight", hidden}});
  head_ = weights.linear({{config.tie_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", config.vocab_size}},
                         hidden);
  inverse_frequencies_ = weights.constant("rope.inverse_frequencies", inverse_frequencies(config));

  // Input logprobs may ask for the logits of every row.
  const auto element = static_cast<int64_t>(tensor::block_bytes(weights.dtype()));
  hidden_ = scratch_.declare("hidden", hidden * 4);
  cos_sin_ = scratch_.declare("cos_sin", 2 * inverse_frequencies_.size * 4);
  logit_hidden_ = scratch_.declare("logit_hidden", hidden * 4);
  logit_normed_ = scratch_.declare("logit_normed", hidden * element);
  logits_ = scratch_.declare("logits", config.vocab_size * 4);
}

const float* Decoder::forward(const kernels::Context& context, const ForwardBatch& batch) const {
  const kernels::Backend& backend = *context.backend;
  auto* hidden = scratch_.at<float>(hidden_);
  auto* cos_sin = scratch_.at<float>(cos_sin_);
  backend.embed(context, {.table = weights_.address(embedding_),
                          .dtype = embedding_.dtype,
                          .ids = batch.token_ids,
                          .out = hidden,
                          .n = batch.n_tokens,
                          .width = config_.hidden_size});
  backend.rope_angles(context, {.positions = batch.positions,
                                .inverse_frequencies = weights_.address(inverse_frequencies_),
                                .cos_sin = cos_sin,
                                .n = batch.n_tokens,
                                .half = inverse_frequencies_.size,
                                .scale = static_cast<float>(config_.rope.angle_scale)});
  const Step step{
      .batch = batch, .kv = kv_, .states = states_, .scratch = scratch_, .hidden = hidden, .cos_sin = cos_sin};
  for (const auto& block : blocks_) block->forward(context, step);

  // Only the rows whose logits are wanted go through the head.
  auto* logit_hidden = scratch_.at<float>(logit_hidden_);
  auto* logit_normed = scratch_.at<void>(logit_normed_);
  auto* logits = scratch_.at<float>(logits_);
  backend.gather_rows(
      context,
      {.in = hidden, .rows = batch.logit_rows, .out = logit_hidden, .n = batch.n_logits, .width = config_.hidden_size});
  rms_norm(context, weights_, final_norm_, logit_hidden, logit_normed, batch.n_logits, config_.rms_norm_eps);
  product(context, weights_, head_, logit_normed, logits, batch.n_logits);
  return logits;
}

std::unique_ptr<Decoder> make_dense_decoder(const ModelConfig& config, WeightStore& weights) {
  auto decoder = std::make_unique<Decoder>(config, weights);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    decoder->add(std::make_unique<GroupedQueryAttention>(config, layer, weights, decoder->scratch(), decoder->kv()));
    decoder->add(std::make_unique<DenseFfn>(config, layer, weights, decoder->scratch()));
  }
  return decoder;
}

}  // namespace sluice::models
