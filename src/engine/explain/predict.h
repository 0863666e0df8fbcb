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

namespace sluice::engine {

// Seconds of a step, on the rank that takes the longest.
struct StepSeconds {
  double attention = 0;  // projections
  double kv = 0;         // over what is cached
  double dense = 0;      // dense FFNs, shared experts, routers
  double experts = 0;
  double head = 0;
  double wire = 0;
  double total() const { return attention + kv + dense + experts + head + wire; }
};

// What each attention group does in a step.
struct GroupWork {
  double tokens = 0;  // that are computed
  double sequences = 0;
  double context = 0;  // tokens before them, of each sequence, on average
  double logits = 0;
};

// A model, divided.
struct Divided {
  models::ModelConfig config;
  parallel::Layout layout;
  kernels::DType dtype = kernels::DType::kBf16;
  models::RankShape shape;  // of rank 0, which has no less than the others
  bool fp8_dispatch = false;
};
// All groups do the same.
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
  double decode_tokens_per_s = 0;  // while nobody's prompt is computed
  double output_tokens_per_s = 0;  // with the prompts' share of the time
};
// Of `instances` that each have `memory` on each of their attention groups. `chunk`: prompt tokens of a group's step.
Prediction predict(const Divided& model, const Hardware& rank, const MemoryPlan& memory, int64_t instances,
                   int64_t chunk, const Workload& workload, int64_t concurrency);

}  // namespace sluice::engine
