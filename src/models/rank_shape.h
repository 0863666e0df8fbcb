// What a rank of an instance holds, without its weights: the model is made for it as for serving, on a device that only
// counts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "base/result.h"
#include "kernels/kernels.h"
#include "models/config.h"
#include "moe/deepep_mode.h"
#include "moe/expert_map.h"
#include "parallel/topology.h"
#include "tensor/stored_tensor.h"

namespace sluice::models {

class Decoder;

// Values that are multiplied by a token that passes them, and the bytes that they lie in.
struct WeightPart {
  int64_t values = 0;
  int64_t bytes = 0;
};

struct RankShape {
  parallel::Slice heads;                                          // of queries
  parallel::Slice key_heads;                                      // none with latent attention
  parallel::Slice vocabulary;                                     // rows of the embedding
  parallel::Slice head;                                           // rows of the head
  parallel::Slice dense_columns, expert_columns, shared_columns;  // none where the model has no such FFNs
  parallel::Slice experts;  // of each layer with experts; places of a map, if there is one
  // Weights. `shared`: of layers with experts all but those and attention, `dense`: of other layers all but attention.
  WeightPart attention, dense, shared, experts_weights, embedding, output;
  int64_t kv_bytes_per_token = 0;
  int64_t state_bytes_per_sequence = 0;

  int64_t weight_bytes() const {
    return attention.bytes + dense.bytes + shared.bytes + experts_weights.bytes + embedding.bytes + output.bytes;
  }
};

// Of the rank `layout.tp_rank`, with matrix products in `dtype`. `source` says how matrices are stored. Matrices take
// the bytes of their values; what a device adds by packing them is not counted. check_sharding() has passed.
// `kv_dtype`: of keys and values, if not `dtype`. `rounded`: quantised matrices stay so, as with --dtype auto. `map`:
// where experts and copies of them are, if not each once and in order.
Result<RankShape> shape_of_rank(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                                const tensor::TensorSource& source, std::optional<kernels::DType> kv_dtype = {},
                                bool rounded = false, const moe::ExpertMap* map = nullptr);

// Bytes of that rank's weights where all ranks of the layout are on one host and have what is alike in common
// (layers/common_weights.h). Arguments as above.
Result<int64_t> own_weight_bytes(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                                 const tensor::TensorSource& source, bool rounded = false,
                                 const moe::ExpertMap* map = nullptr);

// The largest step that a rank is to make, and how.
struct StepShape {
  int64_t max_tokens = 0;
  int64_t max_seqs = 0;
  moe::DeepEpOptions deepep = {};
  bool in_halves = false;        // that overlap
  bool records_routing = false;  // keeps what routers chose
};

// Memory that a rank takes for its steps, once.
struct StepBuffers {
  int64_t bytes = 0;
  int64_t host_bytes = 0;      // of those, in the host's memory whatever the device
  int64_t dispatch_bytes = 0;  // of those, what sends rows to experts, such as low_latency's slab
};

// Of a decoder that has its buffers: those, and what stands in host memory beside them. `host_visible`: as of the
// device. What a runner declares and what needs_of_rank() foretells are this.
StepBuffers step_buffers(const Decoder& decoder, const ModelConfig& config, const parallel::Layout& layout,
                         const StepShape& step, bool host_visible);
// Integers that say what is in such a step, halves with starts and lengths of their own, which may both have one
// sequence, and the rows of attention groups that are filled up.
int64_t staged_integers(const StepShape& step, const parallel::Layout& layout);

// Both, of one model that is made for them, which is most of the time that they take; other arguments as of
// shape_of_rank(). Rows are padded as on the CPU.
struct RankNeeds {
  RankShape shape;
  StepBuffers buffers;
};
Result<RankNeeds> needs_of_rank(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                                const tensor::TensorSource& source, const StepShape& step,
                                std::optional<kernels::DType> kv_dtype = {}, bool rounded = false,
                                const moe::ExpertMap* map = nullptr);

// Weights that nobody trained, in the types that checkpoints of this configuration are published in.
std::unique_ptr<tensor::TensorSource> dummy_weights(const ModelConfig& config);

}  // namespace sluice::models
