// A forward pass over a batch of rows, for every family: embedding, the blocks of its layers one after another, head.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "models/config.h"
#include "models/layers/kv_cache.h"
#include "models/layers/routing.h"
#include "models/layers/scratch.h"
#include "models/layers/state_cache.h"
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
  // The same in host memory, for what the host decides.
  const int32_t* host_query_start = nullptr;
  const int32_t* host_seq_lens = nullptr;
};

// What a block sees of the step.
struct Step {
  const ForwardBatch& batch;
  const KvCache& kv;
  const StateCache& states;
  const Scratch& scratch;
  float* hidden = nullptr;         // [n_tokens, hidden] the residual stream
  const float* cos_sin = nullptr;  // [n_tokens, 2, rotary_dim / 2]
};

// Half a layer, attention or FFN, that changes the residual stream. It declares its weights and scratch when it is
// made.
class Block {
 public:
  virtual ~Block() = default;
  virtual void forward(const kernels::Context& context, const Step& step) const = 0;
};

// Used by the rank's thread.
class Decoder {
 public:
  // Declares embedding, final norm and head.
  Decoder(const ModelConfig& config, WeightStore& weights);

  // Where the blocks declare their scratch, what they keep of every token and every sequence, and their routers.
  Scratch& scratch() { return scratch_; }
  KvCache& kv() { return kv_; }
  const KvCache& kv() const { return kv_; }
  StateCache& states() { return states_; }
  const StateCache& states() const { return states_; }
  RoutingRecord& routing() { return routing_; }
  const RoutingRecord& routing() const { return routing_; }
  void add(std::unique_ptr<Block> block) { blocks_.push_back(std::move(block)); }
  // Once, after the last add(). kExhausted if the memory cannot be had.
  Result<void> allocate(int64_t max_tokens) { return scratch_.allocate(max_tokens); }

  // Queues the whole step: K and V of every row into the cache. Returns where the logits of batch.logit_rows will be,
  // [n_logits, vocab] in device memory, until the next call.
  const float* forward(const kernels::Context& context, const ForwardBatch& batch) const;

 private:
  const ModelConfig config_;
  const WeightStore& weights_;
  Scratch scratch_;
  KvCache kv_;
  StateCache states_;
  RoutingRecord routing_;
  TableWeight embedding_;
  std::vector<std::unique_ptr<Block>> blocks_;
  VectorWeight final_norm_;
  LinearWeight head_;
  VectorWeight inverse_frequencies_;
  Scratch::Slot hidden_;        // [n_tokens, hidden]
  Scratch::Slot cos_sin_;       // [n_tokens, 2, rotary_dim / 2]
  Scratch::Slot logit_hidden_;  // [n_logits, hidden]
  Scratch::Slot logit_normed_;  // [n_logits, hidden] of dtype
  Scratch::Slot logits_;        // [n_logits, vocab]
};

// x += Attention(RMSNorm(x)); x += FFN(RMSNorm(x)), with grouped-query attention, rotary positions and a SiLU-gated
// FFN.
std::unique_ptr<Decoder> make_dense_decoder(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
