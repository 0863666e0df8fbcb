// x += Attention(RMSNorm(x)) with multi-head latent attention (DeepSeek-V2 2024, section 2.1): what is kept of a token
// is one latent for all heads, from which each head's keys and values are projected, and one rotary key for all heads.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "models/layers/decoder.h"

namespace sluice::models {

// The fields of config.json that latent attention has, with DeepSeek's names.
Result<void> read_mla(const nlohmann::json& json, ModelConfig& config);

struct LatentSizes {
  int64_t nope = 0;    // values of a head's query and key that have no position
  int64_t rotary = 0;  // those that do; the keys' are shared by the heads
  int64_t latent = 0;  // kv_lora_rank
  int64_t value = 0;   // v_head_dim
};

// Whether `queries` new tokens at the end of a sequence of `length` cost fewer multiplications when keys and values are
// expanded for all of its positions than when weights are absorbed into the queries: where there are many queries.
bool expanding_is_cheaper(int64_t queries, int64_t length, const LatentSizes& sizes);

// With k = W_k c and v = W_v c for a latent c, attention runs over expanded keys and values (`expanded_attention`), or
// weights are absorbed: q.k = (W_k^T q).c, the sum of weighted v is W_v times the sum of weighted c, and it runs over
// the latents themselves (`latent_attention`). Whichever is cheaper, sequence by sequence. A rank of an attention group
// has some of the heads; the latents, which serve all of them, are kept on each.
class LatentAttention final : public Block {
 public:
  LatentAttention(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch, KvCache& kv);

  Result<void> run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                   float* out) const override;

 private:
  // Queries and what is cached of each token, normed and rotated; the latter goes into the cache.
  void project(const kernels::Context& context, const Step& step, const void* x) const;
  // Sequences [first, last) of the batch.
  void attend_absorbed(const kernels::Context& context, const Step& step, int64_t first, int64_t last) const;
  void attend_expanded(const kernels::Context& context, const Step& step, int64_t first, int64_t last) const;

  const float* queries(const Step& step) const { return step.scratch.at<float>(q_lora_ > 0 ? q_slot_ : down_slot_); }
  int64_t query_stride() const { return q_lora_ > 0 ? heads_ * (nope_ + rotary_) : q_columns_ + latent_ + rotary_; }

  const int64_t heads_;  // of this rank
  const int64_t nope_;   // as in LatentSizes
  const int64_t rotary_;
  const int64_t latent_;
  const int64_t value_;
  const int64_t q_lora_;     // 0: queries are not compressed
  const int64_t q_columns_;  // of `down`, before the latent: q_lora, or all queries
  const double epsilon_;
  const float scale_;  // of scores
  const WeightStore& weights_;

  LinearWeight down_;                   // [q_columns + latent + rotary, hidden]
  std::optional<VectorWeight> q_norm_;  // [q_lora]
  std::optional<LinearWeight> q_up_;    // [heads * (nope + rotary), q_lora]
  VectorWeight latent_norm_;            // [latent]
  HeadsWeight absorb_;                  // [heads] of [latent, nope]: W_k^T
  HeadsWeight key_up_;                  // [heads] of [nope, latent]: W_k
  HeadsWeight value_up_;                // [heads] of [value, latent]: W_v
  LinearWeight o_;                      // [hidden, heads * value]
  KvCache::Plane cache_;                // [latent + rotary]
  Scratch::Slot down_slot_;             // [n, q_columns + latent + rotary]
  Scratch::Slot q_normed_slot_;         // [n, q_lora] of dtype
  Scratch::Slot q_slot_;                // [n, heads, nope + rotary]
  Scratch::Slot q_latent_slot_;         // [n, heads, latent]
  Scratch::Slot mixed_slot_;            // [n, heads, latent]
  Scratch::Slot attended_slot_;         // [n, heads * value] of dtype
};

}  // namespace sluice::models
