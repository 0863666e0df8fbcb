// x += Attention(RMSNorm(x)) with grouped-query attention (Ainslie et al. 2023) and rotary positions.
#pragma once

#include <cstdint>
#include <optional>

#include "models/layers/decoder.h"
#include "models/layers/residual.h"

namespace sluice::models {

class GroupedQueryAttention final : public Block {
 public:
  GroupedQueryAttention(const ModelConfig& config, int64_t layer, WeightStore& weights, Scratch& scratch, KvCache& kv);

  void forward(const kernels::Context& context, const Step& step) const override;

 private:
  // Queries or keys by themselves, in place: each head, or all heads of a token together.
  void norm_heads(const kernels::Context& context, float* heads, const VectorWeight& weight, int64_t n,
                  int64_t n_heads) const;

  const int64_t heads_;
  const int64_t kv_heads_;
  const int64_t dim_;     // of a head
  const int64_t rotary_;  // its first values, which are rotated
  const int64_t stride_;  // of a row of qkv
  const bool interleaved_;
  const double epsilon_;
  const WeightStore& weights_;
  const Residual residual_;
  LinearWeight qkv_;  // [(heads + 2 kv_heads) * dim, hidden]
  std::optional<VectorWeight> qkv_bias_;
  std::optional<VectorWeight> q_norm_, k_norm_;  // [dim], or [heads * dim] and [kv_heads * dim]
  LinearWeight o_;                               // [hidden, heads * dim]
  KvCache::Plane keys_, values_;                 // [kv_heads * dim]
  Scratch::Slot qkv_slot_;                       // [n, (heads + 2 kv_heads) * dim]
  Scratch::Slot attended_slot_;                  // [n, heads * dim] of dtype
};

}  // namespace sluice::models
