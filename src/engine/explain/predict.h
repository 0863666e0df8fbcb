// How long a step of an instance takes at best, and what that makes of a load. Each part of a step takes the longer of
// reading its bytes and of its arithmetic (the roofline of Williams et al. 2009), and nothing overlaps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/explain/hardware.h"
#include "engine/memory_plan.h"
#include "engine/options.h"
#include "models/config.h"
#include "models/rank_shape.h"
#include "models/wire_bytes.h"
#include "moe/deepep_mode.h"

namespace sluice::engine {

// Seconds of a step, on the rank that takes the longest.
struct StepSeconds {
  double attention = 0;  // projections
  double kv = 0;         // over what is cached
  double dense = 0;      // dense FFNs, shared experts, routers
  double experts = 0;
  double head = 0;
  double wire = 0;
  double hidden = 0;  // of those: in which rows of one half are on their way while the other half is computed
  double total() const { return attention + kv + dense + experts + head + wire - hidden; }
};

// What the busiest attention group does in a step.
struct GroupWork {
  double tokens = 0;  // that are computed
  double sequences = 0;
  double context = 0;  // tokens before them, of each sequence, on average
  double logits = 0;
  double even = 1;  // all groups' work, of what it were if each had as much: 1 / dp where one group alone has work
};

// A model, divided.
struct Divided {
  models::ModelConfig config;
  parallel::Layout layout;
  kernels::DType dtype = kernels::DType::kBf16;
  models::RankShape shape;  // of rank 0, which has no less than the others
  bool fp8_dispatch = false;
  moe::DeepEpMode mode = moe::DeepEpMode::kNormal;
  int64_t slab_tokens = 0;   // of a rank, that --deepep-mode auto sends through the slab
  int64_t physical = 0;      // experts of a layer, copies included
  models::TokenReach reach;  // with deepep
  bool two_batches = false;  // --enable-two-batch-overlap
};
// Of a step of so many tokens of all groups.
models::RowsToExperts rows_to_experts(const Divided& model, double tokens, bool extend);
// With two batches, where a group has two tokens or more, the step runs in halves: with C, what
// computing the layers of both halves takes, W, what their rows take on the way, and L layers,
//   step = max(C, W) + min(C, W) / 2L + head
// since of what is shorter all but the first of its 2L parts lies under the other. C is more than that of one batch, as
// each half reads all weights.
StepSeconds step_seconds(const Divided& model, const Hardware& rank, const GroupWork& work);

// Requests of equal length, so many at a time, forever.
struct Workload {
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
};
struct Prediction {
  int64_t concurrency = 0;
  int64_t running = 0;  // at once; the others wait
  StepSeconds decode;
  double decode_unsplit = 0;       // seconds of the same step in one batch; with two batches
  double decode_tokens_per_s = 0;  // while nobody's prompt is computed
  double output_tokens_per_s = 0;  // with the prompts' share of the time
};
// Of `instances` that each have `memory` on each of their attention groups. `chunk`: prompt tokens of a group's step.
Prediction predict(const Divided& model, const Hardware& rank, const MemoryPlan& memory, int64_t instances,
                   int64_t chunk, const Workload& workload, int64_t concurrency);

}  // namespace sluice::engine
