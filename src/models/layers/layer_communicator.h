// Which rows of a step a rank computes in half a layer, and how the ranks' results come together (engine-reference.md
// 4.6 and 4.7). Between halves every rank of an attention group has the whole residual stream of the group's tokens.
#pragma once

#include <cstdint>

#include "models/layers/decoder.h"
#include "parallel/groups.h"

namespace sluice::models {

class LayerCommunicator {
 public:
  LayerCommunicator(const ModelConfig& config, const WeightStore& weights, Scratch& scratch);

  // hidden = block(hidden) for the step's rows of this rank's attention group, on all ranks of step.groups at once.
  Result<void> run(const kernels::Context& context, const Step& step, const Block& block, float* hidden) const;

 private:
  Result<void> run_partial(const kernels::Context& context, const Step& step, const Block& block, float* hidden,
                           parallel::Communicator* group) const;
  Result<void> run_gathered(const kernels::Context& context, const Step& step, const Block& block, float* hidden) const;
  Result<void> run_scattered(const kernels::Context& context, const Step& step, const Block& block,
                             float* hidden) const;

  const int64_t hidden_;
  const kernels::DType dtype_;
  Scratch::Slot normed_slot_;  // [rows, hidden] of dtype
  Scratch::Slot sum_slot_;     // [rows of all attention groups, hidden] where there are several
};

}  // namespace sluice::models
