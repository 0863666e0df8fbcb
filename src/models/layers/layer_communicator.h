// Which rows of a step a rank computes in half a layer, and how the ranks' results come together. Between halves
// every rank of an attention group has the whole residual stream of the group's tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/layers/decoder.h"
#include "parallel/groups.h"

namespace sluice::models {

// How the ranks' results come together in half a layer.
enum class Joining : uint8_t {
  kAlone,     // this rank has the whole model
  kGroupSum,  // summands within an attention group
  kSum,       // summands of all ranks, which have the same tokens
  kGather,    // the groups' rows come together before, and the sums are scattered after
  kOwnRows,   // each rank computes whole rows of its group's
};
// `groups` null: one rank.
Joining joining_of(Spread spread, const parallel::Groups* groups);

// Rows of each attention group where those of all are together: its `tokens`, or with `padded` as many on each.
std::vector<int64_t> gathered_rows(std::span<const int64_t> tokens, int64_t padded);
// Zeros from row `n` on, where there are less than `count` rows of `row_bytes`.
void fill_up(const kernels::Context& context, char* rows, size_t row_bytes, int64_t n, int64_t count);
// Where the rows of an attention group lie among those of all groups.
parallel::Slice rows_of_group(std::span<const int64_t> group_tokens, int64_t group);
// The rows of which each rank gets the sums: those of a group are divided among its `members`. [ranks]
std::vector<int64_t> scattered_rows(std::span<const int64_t> group_tokens, int64_t members);

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
