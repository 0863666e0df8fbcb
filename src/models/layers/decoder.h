// A forward pass over a batch of rows, for every family: what it needs, and the pre-norm decoder that the dense
// families share.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "models/config.h"
#include "models/layers/weights.h"

namespace sluice::models {

// One step in device memory, in buffers that keep their addresses for the life of the rank.
struct ForwardBatch {
  int64_t n_tokens = 0;
  int64_t n_seqs = 0;
  int64_t n_logits = 0;
  const int32_t* token_ids = nullptr;    // [n_tokens]
  const int32_t* positions = nullptr;    // [n_tokens]
  const int32_t* kv_slots = nullptr;     // [n_tokens]
  const int32_t* query_start = nullptr;  // [n_seqs + 1]
  const int32_t* seq_lens = nullptr;     // [n_seqs]
  const int32_t* table_rows = nullptr;   // [n_seqs]
  const int32_t* logit_rows = nullptr;   // [n_logits]
  const int32_t* slot_table = nullptr;   // [rows, table_width]
  int64_t table_width = 0;
};

// Keys and values of all layers: [layers][2][slots, kv_heads * head_dim] of dtype.
struct KvCache {
  char* memory = nullptr;
  int64_t slots = 0;
  int64_t width = 0;
  kernels::DType dtype = kernels::DType::kF32;

  size_t plane_bytes() const { return static_cast<size_t>(slots * width) * tensor::block_bytes(dtype); }
  void* keys(int64_t layer) const { return memory + static_cast<size_t>(2 * layer) * plane_bytes(); }
  void* values(int64_t layer) const { return memory + static_cast<size_t>(2 * layer + 1) * plane_bytes(); }
};

// Scratch of a step, sized for the largest one.
class Buffers {
 public:
  static Result<std::unique_ptr<Buffers>> create(const kernels::Backend& backend, const ModelConfig& config,
                                                 kernels::DType dtype, int64_t max_tokens, int64_t max_logits);
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  float* hidden = nullptr;        // [n_tokens, hidden] the residual stream
  void* normed = nullptr;         // [n_tokens, hidden] of dtype
  float* cos_sin = nullptr;       // [n_tokens, 2, head_dim / 2]
  float* qkv = nullptr;           // [n_tokens, (heads + 2 kv_heads) * head_dim]
  void* attention = nullptr;      // [n_tokens, heads * head_dim] of dtype
  float* gate_up = nullptr;       // [n_tokens, 2 * intermediate]
  void* activated = nullptr;      // [n_tokens, intermediate] of dtype
  float* logit_hidden = nullptr;  // [n_logits, hidden]
  void* logit_normed = nullptr;   // [n_logits, hidden] of dtype
  float* logits = nullptr;        // [n_logits, vocab]

 private:
  explicit Buffers(const kernels::Backend& backend) : backend_(backend) {}

  const kernels::Backend& backend_;
  std::vector<std::pair<void*, size_t>> owned_;
};

// Used by the rank's thread.
class Decoder {
 public:
  virtual ~Decoder() = default;
  // Queues the whole step: K and V of every row into the cache, logits of batch.logit_rows into buffers.logits.
  virtual void forward(const kernels::Context& context, const ForwardBatch& batch, const KvCache& kv,
                       Buffers& buffers) const = 0;
};

// x += Attention(RMSNorm(x)); x += FFN(RMSNorm(x)), with grouped-query attention, rotary positions and a SiLU-gated
// FFN.
std::unique_ptr<Decoder> make_dense_decoder(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
