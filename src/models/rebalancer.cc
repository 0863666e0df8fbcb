#include "models/rebalancer.h"

#include <xxhash.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/pulse.h"
#include "moe/expert_moves.h"

namespace sluice::models {
namespace {

constexpr std::string_view kComponent = "models/eplb";
// A layer whose balancedness would grow by less stays: loads of the next steps differ by as much.
constexpr double kLeastGain = 0.01;

double expected(const std::vector<int64_t>& loads, const std::vector<int32_t>& location, int64_t ranks) {
  return moe::expected_balancedness({loads}, {location}, ranks);
}

bool has_tokens(const std::vector<int64_t>& loads) {
  return std::ranges::any_of(loads, [](int64_t tokens) { return tokens > 0; });
}

}  // namespace

Rebalancer::Rebalancer(const moe::RebalanceOptions& options, const Model& model, OnMoved on_moved)
    : options_(options),
      model_(model),
      on_moved_(std::move(on_moved)),
      groups_(*model.weights.groups()),
      own_(parallel::part_of(model.map.physical, groups_.layout.experts())),
      mover_(model.weights, model.decoder.expert_layers()),
      window_({.layers = model.decoder.routing().layers(),
               .logical = model.map.logical,
               .own = own_.count,
               .ranks = groups_.layout.ep_size,
               .rank = groups_.layout.experts().rank,
               .reports = groups_.layout.expert_tp().rank == 0}) {}

Result<void> Rebalancer::begin(const kernels::Context& context) {
  SLUICE_TRY_VOID(mover_.check_alike());
  restart(context);
  return {};
}

bool Rebalancer::speaks() const { return groups_.layout.tp_rank == 0; }

std::vector<int32_t> Rebalancer::own_experts(size_t layer) const {
  const auto& location = model_.map.location[static_cast<size_t>(model_.decoder.expert_layers()[layer].number)];
  return {location.begin() + own_.first, location.begin() + own_.end()};
}

std::vector<int64_t> Rebalancer::own_loads(const kernels::Context& context) const {
  const RoutingRecord& routing = model_.decoder.routing();
  std::vector<int64_t> all(static_cast<size_t>(routing.layers() * routing.experts())), own;
  context.backend->copy_to_host(context, all.data(), routing.loads({0}), all.size() * sizeof(int64_t));
  context.backend->synchronize(context);
  for (int64_t layer = 0; layer < routing.layers(); ++layer) {
    const auto first = all.begin() + layer * routing.experts() + own_.first;
    own.insert(own.end(), first, first + own_.count);
  }
  return own;
}

void Rebalancer::restart(const kernels::Context& context) {
  std::vector<int32_t> own;
  for (size_t layer = 0; layer < model_.decoder.expert_layers().size(); ++layer) {
    const auto experts = own_experts(layer);
    own.insert(own.end(), experts.begin(), experts.end());
  }
  window_.restart(std::move(own), own_loads(context));
}

void Rebalancer::after_step(const kernels::Context& context, bool extend) {
  // Steps between the moves of a placement tell nothing of either.
  if (planned_.empty()) window_.add(own_loads(context), extend);
}

Result<void> Rebalancer::before_step(const kernels::Context& context, int64_t step) {
  if (planned_.empty() && window_.steps() < options_.steps) return {};
  const TimePoint begun = real_clock().now();
  if (planned_.empty()) {
    SLUICE_TRY_VOID(look());
    if (planned_.empty()) restart(context);
  }
  for (int64_t left = options_.layers_at_once; !planned_.empty();) {
    SLUICE_TRY_VOID(move_next(context, step));
    if (planned_.empty()) restart(context);
    if (--left == 0) break;
  }
  if (!speaks()) return {};
  counts_.seconds += seconds(real_clock().now() - begun);
  const uint64_t moved = counts_.layers_moved - before_.layers_moved,
                 back = counts_.layers_rolled_back - before_.layers_rolled_back;
  if (!planned_.empty() || moved + back == 0) return {};
  SLUICE_LOG(info, kComponent,
             "the experts of {} layers have moved, {:.1f} MiB from rank to rank in {:.3f} s, and those of {} have not; "
             "{:.3f} is the balancedness that is expected",
             moved, static_cast<double>(counts_.moved_bytes - before_.moved_bytes) / (1 << 20),
             counts_.seconds - before_.seconds, back, expected_);
  before_ = counts_;
  return {};
}

Result<void> Rebalancer::look() {
  SLUICE_TRY(const auto sums, window_.sum(*groups_.all));
  if (speaks()) {
    count_steps(sums);
    count_tokens(sums);
  }
  before_ = counts_;
  if (sums.mean() > options_.at_most_balanced) {
    if (speaks()) {
      SLUICE_LOG(info, kComponent, "balancedness is {:.3f} over {} steps, above {}: no expert moves", sums.mean(),
                 sums.balancedness.size(), options_.at_most_balanced);
    }
    return {};
  }
  return plan(sums);
}

void Rebalancer::count_steps(const moe::LoadWindow::Sums& sums) {
  for (size_t i = 0; i < sums.balancedness.size(); ++i) {
    const double value = sums.balancedness[i];
    const auto mode = sums.extend[i] ? moe::RebalanceCounts::kExtend : moe::RebalanceCounts::kDecode;
    const auto bucket = std::ranges::lower_bound(moe::kBalancednessBounds, value) - moe::kBalancednessBounds;
    ++counts_.steps[mode][bucket];
    counts_.balancedness[mode][bucket] += value;
  }
}

void Rebalancer::count_tokens(const moe::LoadWindow::Sums& sums) {
  if (rank_tokens_.empty()) {
    rank_tokens_.ranks = groups_.layout.ep_size;
    for (const ExpertLayer& layer : model_.decoder.expert_layers()) rank_tokens_.layers.push_back(layer.number);
    rank_tokens_.tokens = sums.rank_tokens;
    return;
  }
  std::ranges::transform(rank_tokens_.tokens, sums.rank_tokens, rank_tokens_.tokens.begin(), std::plus());
}

moe::RankTokens Rebalancer::take_rank_tokens() { return std::exchange(rank_tokens_, {}); }

Result<void> Rebalancer::plan(const moe::LoadWindow::Sums& sums) {
  SLUICE_TRY(const auto wanted, moe::place_experts(sums.loads, model_.placement, model_.sizes));
  const int64_t ranks = model_.sizes.ranks;
  expected_ = 0;
  int64_t layers = 0;
  for (size_t layer = 0; layer < wanted.size(); ++layer) {
    if (!has_tokens(sums.loads[layer])) continue;
    const auto& now = model_.map.location[static_cast<size_t>(model_.decoder.expert_layers()[layer].number)];
    const double is = expected(sums.loads[layer], now, ranks), can = expected(sums.loads[layer], wanted[layer], ranks);
    const bool moves = can > is + kLeastGain;
    if (moves) planned_.push_back({layer, moe::keep_places(now, wanted[layer], ranks)});
    if (!moves && speaks()) ++counts_.layers_kept;
    expected_ += moves ? can : is;
    ++layers;
  }
  expected_ /= static_cast<double>(std::max<int64_t>(1, layers));
  if (speaks()) {
    SLUICE_LOG(info, kComponent, "balancedness is {:.3f} over {} steps; the experts of {} of {} layers move",
               sums.mean(), sums.balancedness.size(), planned_.size(), layers);
  }
  return {};
}

Result<void> Rebalancer::move_next(const kernels::Context& context, int64_t step) {
  const Planned next = std::move(planned_.front());
  planned_.pop_front();
  const ExpertLayer& layer = model_.decoder.expert_layers()[next.layer];
  const auto number = static_cast<int>(layer.number);
  groups_.all->progress({.step = static_cast<uint32_t>(step), .phase = parallel::Phase::kRebalance, .layer = number});
  Pulse::own().set({.phase = Pulse::Phase::kStep, .step = static_cast<uint32_t>(step), .layer = number});
  auto& now = model_.map.location[static_cast<size_t>(layer.number)];
  const auto moves = moe::moves_between(now, next.location, model_.sizes.ranks);
  const uint64_t fingerprint =
      XXH64(next.location.data(), next.location.size() * sizeof(int32_t), static_cast<uint64_t>(layer.number));
  SLUICE_TRY(const auto moved, mover_.move(context, layer, moves, fingerprint));
  if (moved.damage) {
    if (speaks()) {
      ++counts_.layers_rolled_back;
      SLUICE_LOG(error, kComponent, "the experts of layer {} stay where they were: {}", layer.number, *moved.damage);
    }
    return {};
  }
  now = next.location;
  moved_ = XXH64(&fingerprint, sizeof(fingerprint), moved_);
  model_.decoder.copy_chooser()->place(context, layer.number);
  if (on_moved_) on_moved_(next.layer, own_experts(next.layer));
  if (!speaks()) return {};
  ++counts_.layers_moved;
  counts_.moved_bytes += moved.bytes;
  return {};
}

}  // namespace sluice::models
