// Moves experts while the model serves, so that ranks get about as many tokens each (EPLB).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "base/result.h"
#include "models/expert_mover.h"
#include "models/layers/decoder.h"
#include "moe/expert_map.h"
#include "moe/load_window.h"
#include "moe/rebalance.h"

namespace sluice::models {

// Loads are counted over a number of steps and added up over the ranks; each rank then comes to the same placement by
// itself. Layers move one after another between steps, each at once on all ranks, or not at all. Used by the rank's
// thread; all ranks make the same calls.
class Rebalancer {
 public:
  struct Model {
    WeightStore& weights;
    Decoder& decoder;
    moe::ExpertMap& map;
    moe::ExpertPlacement placement;
    moe::ExpertSizes sizes;
  };
  // A layer with experts, its number among those, has other ones from now on.
  using OnMoved = std::function<void(size_t layer, std::vector<int32_t> own)>;

  // Before the weights are materialised; `model` outlives this.
  Rebalancer(const moe::RebalanceOptions& options, const Model& model, OnMoved on_moved);

  // Once, afterwards. kBadOption: these experts cannot be moved.
  Result<void> begin(const kernels::Context& context);
  // Around each step. An error is that of the group.
  Result<void> before_step(const kernels::Context& context, int64_t step);
  void after_step(const kernels::Context& context, bool extend);

  const moe::RebalanceCounts& counts() const { return counts_; }
  // A hash of all moves so far, in their order, the same on all ranks; 0: there was none.
  uint64_t moved() const { return moved_; }
  // Of the windows that are over; on the first rank.
  moe::RankTokens take_rank_tokens();

 private:
  Result<void> look();
  void count_steps(const moe::LoadWindow::Sums& sums);
  void count_tokens(const moe::LoadWindow::Sums& sums);
  Result<void> plan(const moe::LoadWindow::Sums& sums);
  Result<void> move_next(const kernels::Context& context, int64_t step);
  void restart(const kernels::Context& context);

  std::vector<int32_t> own_experts(size_t layer) const;
  std::vector<int64_t> own_loads(const kernels::Context& context) const;
  bool speaks() const;  // one rank does, of what all know

  struct Planned {
    size_t layer = 0;  // among those with experts
    std::vector<int32_t> location;
  };

  const moe::RebalanceOptions options_;
  const Model model_;
  const OnMoved on_moved_;
  const parallel::Groups& groups_;
  const parallel::Slice own_;  // places of this rank
  ExpertMover mover_;
  moe::LoadWindow window_;
  std::deque<Planned> planned_;
  moe::RebalanceCounts counts_;
  uint64_t moved_ = 0;
  moe::RankTokens rank_tokens_;
  // Of the moves under way, for the log.
  moe::RebalanceCounts before_;
  double expected_ = 0;
};

}  // namespace sluice::models
