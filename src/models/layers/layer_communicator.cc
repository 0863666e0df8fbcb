#include "models/layers/layer_communicator.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace sluice::models {
namespace {

using parallel::Element;

std::vector<int64_t> times(std::span<const int64_t> rows, int64_t width) {
  std::vector<int64_t> values(rows.begin(), rows.end());
  for (int64_t& value : values) value *= width;
  return values;
}

}  // namespace

Joining joining_of(Spread spread, const parallel::Groups* groups) {
  if (groups == nullptr) return Joining::kAlone;
  switch (spread) {
    case Spread::kAttention:
      return Joining::kGroupSum;
    case Spread::kAllTokens:
      return groups->layout.dp_attention() ? Joining::kGather : Joining::kSum;
    case Spread::kOwnTokens:
      break;
  }
  return Joining::kOwnRows;
}

std::vector<int64_t> gathered_rows(std::span<const int64_t> tokens, int64_t padded) {
  std::vector<int64_t> rows(tokens.begin(), tokens.end());
  if (padded > 0) std::ranges::fill(rows, padded);
  return rows;
}

void fill_up(const kernels::Context& context, char* rows, size_t row_bytes, int64_t n, int64_t count) {
  if (count == n) return;
  context.backend->clear(context, rows + static_cast<size_t>(n) * row_bytes,
                         static_cast<size_t>(count - n) * row_bytes);
}

parallel::Slice rows_of_group(std::span<const int64_t> group_tokens, int64_t group) {
  const auto before = group_tokens.first(static_cast<size_t>(group));
  return {.first = std::accumulate(before.begin(), before.end(), int64_t{0}),
          .count = group_tokens[static_cast<size_t>(group)]};
}

std::vector<int64_t> scattered_rows(std::span<const int64_t> group_tokens, int64_t members) {
  std::vector<int64_t> rows;
  for (const int64_t count : group_tokens) {
    for (int64_t member = 0; member < members; ++member) {
      rows.push_back(parallel::part_of(count, {member, members}).count);
    }
  }
  return rows;
}

LayerCommunicator::LayerCommunicator(const ModelConfig& config, const WeightStore& weights, Scratch& scratch)
    : hidden_(config.hidden_size), dtype_(weights.dtype()) {
  const int64_t dp = weights.layout().dp_size;
  normed_slot_ = scratch.declare("normed", hidden_ * static_cast<int64_t>(tensor::block_bytes(dtype_)), dp);
  sum_slot_ = scratch.declare("sum", dp > 1 ? hidden_ * 4 : 0, dp);
}

Result<void> LayerCommunicator::run(const kernels::Context& context, const Step& step, const Block& block,
                                    float* hidden) const {
  const Joining joining = joining_of(block.spread(), step.groups);
  if (joining != Joining::kAlone) {
    step.progress(block.spread() == Spread::kAttention ? parallel::Phase::kAttention : parallel::Phase::kExperts);
  }
  switch (joining) {
    case Joining::kAlone:
      return run_partial(context, step, block, hidden, nullptr);
    case Joining::kGroupSum:
      return run_partial(context, step, block, hidden, step.groups->attention_tp.get());
    case Joining::kSum:
      return run_partial(context, step, block, hidden, step.groups->all);
    case Joining::kGather:
      return run_gathered(context, step, block, hidden);
    case Joining::kOwnRows:
      break;
  }
  return run_scattered(context, step, block, hidden);
}

// Every rank of `group` has all rows, and computes a summand of what the block makes of them. The first one's comes on
// top of the residual stream, so that the sum is the new one.
Result<void> LayerCommunicator::run_partial(const kernels::Context& context, const Step& step, const Block& block,
                                            float* hidden, parallel::Communicator* group) const {
  const int64_t n = step.batch.n_tokens;
  auto* normed = step.scratch.at<void>(normed_slot_);
  block.residual().enter(context, hidden, n, normed);
  if (group != nullptr && group->rank() > 0) {
    context.backend->clear(context, hidden, static_cast<size_t>(n * hidden_) * sizeof(float));
  }
  SLUICE_TRY_VOID(block.run(context, step, normed, n, hidden));
  block.residual().leave(context, hidden, n);
  if (group == nullptr || group->size() == 1) return {};
  step.progress(parallel::Phase::kScatter);
  return group->all_reduce(context, Element::kF32, hidden, hidden, n * hidden_);
}

// The rows of all attention groups come together, every rank computes a summand for all of them, and gets the sum of
// its own ones. Each row's residual is in the summand of one rank that has it.
Result<void> LayerCommunicator::run_gathered(const kernels::Context& context, const Step& step, const Block& block,
                                             float* hidden) const {
  const parallel::Layout& layout = step.groups->layout;
  const std::vector<int64_t> gathered = gathered_rows(step.batch.group_tokens, step.batch.padded_rows);
  const int64_t n = step.batch.n_tokens;
  const parallel::Slice own_rows = rows_of_group(gathered, layout.attention_dp().rank);
  const int64_t all = rows_of_group(gathered, layout.dp_size - 1).end();
  auto* normed = step.scratch.at<char>(normed_slot_);
  auto* sum = step.scratch.at<float>(sum_slot_);
  const size_t row_bytes = static_cast<size_t>(hidden_) * tensor::block_bytes(dtype_);
  char* own = normed + static_cast<size_t>(own_rows.first) * row_bytes;

  block.residual().enter(context, hidden, n, own);
  fill_up(context, own, row_bytes, n, own_rows.count);
  step.progress(parallel::Phase::kGather);
  SLUICE_TRY_VOID(step.groups->attention_dp->all_gather_v(context, parallel::element_of(dtype_), own, normed,
                                                          times(gathered, hidden_)));
  step.progress(parallel::Phase::kExperts);
  context.backend->clear(context, sum, static_cast<size_t>(all * hidden_) * sizeof(float));
  if (layout.leads()) {
    context.backend->copy(context, sum + own_rows.first * hidden_, hidden,
                          static_cast<size_t>(n * hidden_) * sizeof(float));
  }
  SLUICE_TRY_VOID(block.run(context, step, normed, all, sum));
  block.residual().leave(context, sum, all);
  step.progress(parallel::Phase::kScatter);

  // Within an attention group each rank gets a part of its rows first, then they exchange those.
  const int64_t members = layout.attention_tp_size();
  const std::vector<int64_t> rows = scattered_rows(gathered, members);
  const parallel::Slice mine = parallel::part_of(own_rows.count, layout.attention_tp());
  float* part = hidden + mine.first * hidden_;
  SLUICE_TRY_VOID(step.groups->all->reduce_scatter_v(context, Element::kF32, sum, part, times(rows, hidden_)));
  if (members == 1) return {};
  const auto parts =
      std::span(rows).subspan(static_cast<size_t>(layout.attention_dp().rank * members), static_cast<size_t>(members));
  return step.groups->attention_tp->all_gather_v(context, Element::kF32, part, hidden, times(parts, hidden_));
}

// The block computes whole rows: those of an attention group are divided among its ranks.
Result<void> LayerCommunicator::run_scattered(const kernels::Context& context, const Step& step, const Block& block,
                                              float* hidden) const {
  const parallel::Place place = step.groups->layout.attention_tp();
  const parallel::Slice mine = parallel::part_of(step.batch.n_tokens, place);
  float* part = hidden + mine.first * hidden_;
  auto* normed = step.scratch.at<void>(normed_slot_);
  block.residual().enter(context, part, mine.count, normed);
  SLUICE_TRY_VOID(block.run(context, step, normed, mine.count, part));
  block.residual().leave(context, part, mine.count);
  if (place.size == 1) return {};
  step.progress(parallel::Phase::kScatter);
  const int64_t tokens[] = {step.batch.n_tokens};
  return step.groups->attention_tp->all_gather_v(context, Element::kF32, part, hidden,
                                                 times(scattered_rows(tokens, place.size), hidden_));
}

}  // namespace sluice::models
