#include "models/wire_bytes.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "moe/deepep_mode.h"

namespace sluice::models {
namespace {

constexpr double kSumBytes = 4;  // sums are in float32

double sum(std::span<const int64_t> values) {
  return static_cast<double>(std::accumulate(values.begin(), values.end(), int64_t{0}));
}

// The formulas of the collectives, of all ranks of a group together.
struct Formula {
  SumRule rule;
  // To every rank everything that the others have.
  static double all_gather(double bytes_of_all, double ranks) { return bytes_of_all * (ranks - 1); }
  // To every rank its part of what the others have.
  static double reduce_scatter(double bytes_of_one, double ranks) { return bytes_of_one * (ranks - 1); }
  double all_reduce(double bytes, double ranks) const {
    if (bytes <= static_cast<double>(rule.add_all_bytes)) return bytes * ranks * (ranks - 1);
    return reduce_scatter(bytes, ranks) + all_gather(bytes, ranks);
  }
};

class Step {
 public:
  Step(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype, const StepLoad& load,
       SumRule rule, const RowsToExperts& rows)
      : config_(config),
        layout_(layout),
        element_(static_cast<double>(tensor::block_bytes(dtype))),
        dispatched_row_(static_cast<double>(moe::payload_row(config.hidden_size, dtype, rows.fp8).bytes())),
        load_(load),
        rows_(rows),
        formula_{rule},
        members_(static_cast<double>(layout.attention_tp_size())) {}

  WireBytes bytes() {
    if (members_ > 1) sum_within_groups(static_cast<double>(config_.hidden_size));  // the embedding
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      attention(layer);
      ffn(layer);
    }
    if (config_.moe && layout_.a2a == parallel::MoeAllToAll::kDeepEp && layout_.tp_size > 1) rows_of_experts();
    head();
    return out_;
  }

 private:
  // Rows of all groups, as they are gathered.
  double together(std::span<const int64_t> rows) const {
    return load_.padded_rows > 0 ? static_cast<double>(load_.padded_rows * std::ssize(rows)) : sum(rows);
  }

  // Each group's tokens, `width` float32 values of each.
  void sum_within_groups(double width) {
    for (const int64_t tokens : load_.tokens) {
      out_.attention += formula_.all_reduce(static_cast<double>(tokens) * width * kSumBytes, members_);
    }
    ++out_.calls;
  }

  void attention(int64_t layer) {
    if (members_ == 1) return;
    const bool lightning = config_.lightning && config_.lightning->layers[static_cast<size_t>(layer)];
    if (lightning) {
      sum_within_groups(1);
    } else if (config_.qk_norm == QkNorm::kAllHeads) {
      sum_within_groups(2);
    }
    sum_within_groups(static_cast<double>(config_.hidden_size));
  }

  void ffn(int64_t layer) {
    const bool sparse = config_.moe && config_.moe->sparse[static_cast<size_t>(layer)];
    const bool own_tokens = sparse ? layout_.a2a != parallel::MoeAllToAll::kNone : layout_.dense_data_parallel;
    const auto ranks = static_cast<double>(layout_.tp_size), groups = static_cast<double>(layout_.dp_size);
    const double tokens = own_tokens ? sum(load_.tokens) : together(load_.tokens),
                 width = static_cast<double>(config_.hidden_size);
    if (ranks == 1) return;
    if (!own_tokens && groups == 1) {
      out_.scatter += formula_.all_reduce(tokens * width * kSumBytes, ranks);
      ++out_.calls;
      return;
    }
    if (!own_tokens) {
      // The members of a group have the same rows, so each gathers with those of its own number.
      out_.gather += members_ * Formula::all_gather(tokens * width * element_, groups);
      out_.scatter += Formula::reduce_scatter(tokens * width * kSumBytes, ranks);
      out_.calls += 2;
    }
    if (members_ == 1) return;
    out_.scatter += Formula::all_gather(tokens * width * kSumBytes, members_);
    ++out_.calls;
  }

  // Counts, rows, and what experts made of them; without a slab for each expert also numbers and shares of experts.
  void rows_of_experts() {
    const auto ranks = static_cast<double>(layout_.tp_size);
    const auto layers = static_cast<double>(std::ranges::count(config_.moe->sparse, true));
    const auto width = static_cast<double>(config_.hidden_size), top_k = static_cast<double>(config_.moe->top_k);
    if (rows_.low_latency) {
      // Of each of the receiver's experts, and the sender's tokens.
      const auto experts = static_cast<double>(rows_.physical > 0 ? rows_.physical : config_.moe->experts);
      out_.dispatch += layers * (ranks - 1) * (experts + ranks) * sizeof(int64_t);
    } else {
      out_.dispatch += layers * Formula::all_gather(ranks * ranks * sizeof(int64_t), ranks);
      out_.dispatch += rows_.remote * 2 * top_k * sizeof(int32_t);
    }
    out_.dispatch += rows_.remote * dispatched_row_;
    out_.combine += rows_.remote * width * kSumBytes;
    out_.calls += (rows_.low_latency ? 3 : 4) * static_cast<int64_t>(layers);
  }

  void head() {
    const parallel::Place place = layout_.head();
    if (place.size == 1) return;
    if (layout_.dp_attention() && !layout_.dp_lm_head) {
      out_.head +=
          members_ * Formula::all_gather(together(load_.logits) * static_cast<double>(config_.hidden_size) * element_,
                                         static_cast<double>(layout_.dp_size));
      ++out_.head_calls;
    }
    const bool filled_up = load_.padded_rows > 0 && layout_.dp_attention() && !layout_.dp_lm_head;
    for (size_t group = 0; group < load_.logits.size(); ++group) {
      const int64_t rows = filled_up ? load_.padded_rows : load_.logits[group];
      const int64_t leader = layout_.dp_lm_head ? 0 : static_cast<int64_t>(group) * layout_.attention_tp_size();
      const int64_t own = parallel::part_of(config_.vocab_size, {leader, place.size}).count;
      out_.head += static_cast<double>(rows * (config_.vocab_size - own)) * kSumBytes;
    }
    ++out_.head_calls;
    out_.calls += out_.head_calls;
  }

  const ModelConfig& config_;
  const parallel::Layout layout_;
  const double element_;
  const double dispatched_row_;
  const StepLoad load_;
  const RowsToExperts rows_;
  const Formula formula_;
  const double members_;  // of an attention group
  WireBytes out_;
};

double log_choose(int64_t n, int64_t k) {
  const auto factorial = [](int64_t i) { return std::lgamma(static_cast<double>(i) + 1); };
  return factorial(n) - factorial(k) - factorial(n - k);
}

// How likely none of a token's experts takes it somewhere; `misses` [experts]: how likely each does not. The router
// keeps some of the groups of experts and chooses top_k experts of those: sums over all such choices, by the number of
// groups and of experts that are chosen so far.
double all_miss(const MoeConfig& moe, std::span<const double> misses) {
  const auto kept = static_cast<size_t>(moe.kept_groups), top = static_cast<size_t>(moe.top_k);
  const auto per_group = static_cast<size_t>(moe.experts / moe.groups);
  std::vector<std::vector<double>> sums(kept + 1, std::vector<double>(top + 1));
  sums[0][0] = 1;
  std::vector<double> of_group(top + 1);
  for (size_t group = 0; group < static_cast<size_t>(moe.groups); ++group) {
    std::ranges::fill(of_group, 0);
    of_group[0] = 1;
    for (const double miss : misses.subspan(group * per_group, per_group)) {
      for (size_t k = top; k > 0; --k) of_group[k] += of_group[k - 1] * miss;
    }
    for (size_t g = kept; g > 0; --g) {
      for (size_t k = 0; k <= top; ++k) {
        for (size_t j = 0; j <= k; ++j) sums[g][k] += sums[g - 1][k - j] * of_group[j];
      }
    }
  }
  return sums[kept][top] / std::exp(log_choose(moe.groups, moe.kept_groups) +
                                    log_choose(moe.kept_groups * (moe.experts / moe.groups), moe.top_k));
}

// [ranks][experts] how likely a token of the rank `from` and of an expert goes to a rank.
using Shares = std::vector<std::vector<double>>;
Shares shares_of(const MoeConfig& moe, int64_t ranks, const moe::ExpertMap* map, int64_t layer, int64_t from) {
  Shares shares(static_cast<size_t>(ranks), std::vector<double>(static_cast<size_t>(moe.experts)));
  if (map == nullptr) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const parallel::Slice own = parallel::part_of(moe.experts, {rank, ranks});
      std::fill_n(shares[static_cast<size_t>(rank)].begin() + own.first, own.count, 1.0);
    }
    return shares;
  }
  const int64_t per_rank = map->physical / ranks;
  const auto at = [&](int32_t copy, size_t expert) -> double& {
    return shares[static_cast<size_t>(copy / per_rank)][expert];
  };
  if (map->choice == moe::CopyChoice::kStatic) {
    const auto chosen = moe::static_copies(*map, layer, {from, ranks});
    for (size_t e = 0; e < chosen.size(); ++e) at(chosen[e], e) = 1;
    return shares;
  }
  const auto copies = map->copies(layer);
  for (size_t e = 0; e < copies.size(); ++e) {
    for (const int32_t copy : copies[e]) at(copy, e) += 1 / static_cast<double>(copies[e].size());
  }
  return shares;
}

TokenReach reach_in_layer(const MoeConfig& moe, int64_t ranks, const moe::ExpertMap* map, int64_t layer) {
  TokenReach reach;
  // Only static copies depend on where a token comes from.
  const bool alike = map == nullptr || map->choice != moe::CopyChoice::kStatic;
  std::vector<double> goes(static_cast<size_t>(ranks)), experts(goes.size());  // by rank
  for (int64_t from = 0; from < ranks; ++from) {
    if (from == 0 || !alike) {
      Shares shares = shares_of(moe, ranks, map, layer, from);
      for (size_t rank = 0; rank < shares.size(); ++rank) {
        experts[rank] = std::accumulate(shares[rank].begin(), shares[rank].end(), 0.0) /
                        static_cast<double>(moe.experts) * static_cast<double>(moe.top_k);
        for (double& share : shares[rank]) share = 1 - share;
        goes[rank] = 1 - all_miss(moe, shares[rank]);
      }
    }
    const auto own = static_cast<size_t>(from);
    const double all = std::accumulate(goes.begin(), goes.end(), 0.0);
    reach.ranks += all;
    reach.remote_ranks += all - goes[own];
    reach.remote_experts += std::accumulate(experts.begin(), experts.end(), 0.0) - experts[own];
  }
  const auto sources = static_cast<double>(ranks);
  return {reach.ranks / sources, reach.remote_ranks / sources, reach.remote_experts / sources};
}

}  // namespace

WireBytes wire_bytes(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                     const StepLoad& load, const RowsToExperts& rows, SumRule rule) {
  SLUICE_CHECK(std::ssize(load.tokens) == layout.dp_size && std::ssize(load.logits) == layout.dp_size,
               "{} and {} counts of {} attention groups", load.tokens.size(), load.logits.size(), layout.dp_size);
  return Step(config, layout, dtype, load, rule, rows).bytes();
}

TokenReach expected_reach(const MoeConfig& moe, int64_t ranks, const moe::ExpertMap* map) {
  if (map == nullptr) return reach_in_layer(moe, ranks, nullptr, 0);
  TokenReach sum, last;
  const std::vector<int32_t>* last_location = nullptr;
  double layers = 0;
  for (size_t layer = 0; layer < map->location.size(); ++layer) {
    if (!moe.sparse[layer]) continue;
    const bool same = last_location != nullptr && *last_location == map->location[layer];
    // Static choices among copies are others in each layer, which evens out.
    if (!same) last = reach_in_layer(moe, ranks, map, static_cast<int64_t>(layer));
    last_location = &map->location[layer];
    sum.ranks += last.ranks;
    sum.remote_ranks += last.remote_ranks;
    sum.remote_experts += last.remote_experts;
    ++layers;
  }
  return {sum.ranks / layers, sum.remote_ranks / layers, sum.remote_experts / layers};
}

}  // namespace sluice::models
