// x += Attention(RMSNorm(x)) with grouped-query attention (Ainslie et al. 2023) and rotary positions.
#pragma once

#include <cstdint>
#include <optional>

#include "models/layers/decoder.h"

namespace sluice::models {

// Those that a rank's query heads use.
parallel::Slice key_heads(const ModelConfig& config, const parallel::Layout& layout);

// A rank of an attention group has some of the query heads, and the key heads that these use; where there are more
// ranks than key heads, several have the same.
class GroupedQueryAttention final : public Block {
 public:
  GroupedQueryAttention(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch, KvCache& kv);

  Result<void> run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                   float* out) const override;

 private:
  // In place: each head by itself, or all heads of a token together, whatever ranks they are on.
  Result<void> norm(const kernels::Context& context, const Step& step, float* q, float* k, int64_t n) const;
  void norm_heads(const kernels::Context& context, float* heads, const VectorWeight& weight, int64_t n,
                  int64_t n_heads) const;

  const int64_t heads_;  // of this rank
  const int64_t kv_heads_;
  const int64_t dim_;     // of a head
  const int64_t rotary_;  // its first values, which are rotated
  const int64_t stride_;  // of a row of qkv
  const bool interleaved_;
  const int64_t all_heads_, all_kv_heads_;
  const bool norms_all_heads_;
  const bool first_of_its_keys_;  // of the ranks that have the same key heads
  const double epsilon_;
  const WeightStore& weights_;
  LinearWeight qkv_;  // [(heads + 2 kv_heads) * dim, hidden]
  std::optional<VectorWeight> qkv_bias_;
  std::optional<VectorWeight> q_norm_, k_norm_;  // [dim], or [heads * dim] and [kv_heads * dim]
  LinearWeight o_;                               // [hidden, heads * dim]
  KvCache::Plane keys_, values_;                 // [kv_heads * dim]
  Scratch::Slot qkv_slot_;                       // [n, (heads + 2 kv_heads) * dim]
  Scratch::Slot attended_slot_;                  // [n, heads * dim] of dtype
  Scratch::Slot squares_slot_;                   // [2, n] of queries and keys
};

}  // namespace sluice::models
