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
       SumRule rule, bool fp8)
      : config_(config),
        layout_(layout),
        element_(static_cast<double>(tensor::block_bytes(dtype))),
        dispatched_row_(static_cast<double>(moe::payload_row(config.hidden_size, dtype, fp8).bytes())),
        load_(load),
        formula_{rule},
        members_(static_cast<double>(layout.attention_tp_size())) {}

  WireBytes bytes(double remote_rows) {
    if (members_ > 1) sum_within_groups(static_cast<double>(config_.hidden_size));  // the embedding
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      attention(layer);
      ffn(layer);
    }
    const double rows = remote_rows;
    if (config_.moe && layout_.a2a == parallel::MoeAllToAll::kDeepEp && layout_.tp_size > 1) rows_of_experts(rows);
    head();
    return out_;
  }

 private:
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
    const double tokens = sum(load_.tokens), width = static_cast<double>(config_.hidden_size);
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

  // Counts to all, numbers and shares of experts, rows, and what experts made of them.
  void rows_of_experts(double rows) {
    const auto ranks = static_cast<double>(layout_.tp_size);
    const auto layers = static_cast<double>(std::ranges::count(config_.moe->sparse, true));
    const auto width = static_cast<double>(config_.hidden_size), top_k = static_cast<double>(config_.moe->top_k);
    out_.dispatch += layers * Formula::all_gather(ranks * ranks * sizeof(int64_t), ranks);
    out_.dispatch += rows * (2 * top_k * sizeof(int32_t) + dispatched_row_);
    out_.combine += rows * width * kSumBytes;
    out_.calls += 4 * static_cast<int64_t>(layers);
  }

  void head() {
    const parallel::Place place = layout_.head();
    if (place.size == 1) return;
    if (layout_.dp_attention() && !layout_.dp_lm_head) {
      out_.head +=
          members_ * Formula::all_gather(sum(load_.logits) * static_cast<double>(config_.hidden_size) * element_,
                                         static_cast<double>(layout_.dp_size));
      ++out_.calls;
    }
    for (size_t group = 0; group < load_.logits.size(); ++group) {
      const int64_t leader = layout_.dp_lm_head ? 0 : static_cast<int64_t>(group) * layout_.attention_tp_size();
      const int64_t own = parallel::part_of(config_.vocab_size, {leader, place.size}).count;
      out_.head += static_cast<double>(load_.logits[group] * (config_.vocab_size - own)) * kSumBytes;
    }
    ++out_.calls;
  }

  const ModelConfig& config_;
  const parallel::Layout layout_;
  const double element_;
  const double dispatched_row_;
  const StepLoad load_;
  const Formula formula_;
  const double members_;  // of an attention group
  WireBytes out_;
};

double log_choose(int64_t n, int64_t k) {
  const auto factorial = [](int64_t i) { return std::lgamma(static_cast<double>(i) + 1); };
  return factorial(n) - factorial(k) - factorial(n - k);
}

// That none of `mine` among `all` is one of `chosen` different ones.
double none_chosen(int64_t mine, int64_t all, int64_t chosen) {
  if (all - mine < chosen) return 0;
  return std::exp(log_choose(all - mine, chosen) - log_choose(all, chosen));
}

}  // namespace

WireBytes wire_bytes(const ModelConfig& config, const parallel::Layout& layout, kernels::DType dtype,
                     const StepLoad& load, double remote_rows, SumRule rule, bool fp8) {
  SLUICE_CHECK(std::ssize(load.tokens) == layout.dp_size && std::ssize(load.logits) == layout.dp_size,
               "{} and {} counts of {} attention groups", load.tokens.size(), load.logits.size(), layout.dp_size);
  return Step(config, layout, dtype, load, rule, fp8).bytes(remote_rows);
}

// The router keeps some of the groups of experts and chooses top_k experts of those. By the number of a rank's experts
// that the kept groups have, counted over the choices of groups.
double expected_ranks_of_token(const MoeConfig& moe, int64_t ranks) {
  const int64_t per_group = moe.experts / moe.groups;
  double expected = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const parallel::Slice own = parallel::part_of(moe.experts, {rank, ranks});
    // ways[g][m]: choices of g groups that have m of the rank's experts.
    std::vector<std::vector<double>> ways(static_cast<size_t>(moe.kept_groups + 1),
                                          std::vector<double>(static_cast<size_t>(own.count + 1)));
    ways[0][0] = 1;
    for (int64_t group = 0; group < moe.groups; ++group) {
      const int64_t first = std::max(own.first, group * per_group);
      const auto mine = static_cast<size_t>(std::max<int64_t>(0, std::min(own.end(), (group + 1) * per_group) - first));
      for (size_t kept = ways.size() - 1; kept > 0; --kept) {
        for (size_t m = mine; m < ways[kept].size(); ++m) ways[kept][m] += ways[kept - 1][m - mine];
      }
    }
    const std::vector<double>& of_all = ways.back();
    const double all = std::accumulate(of_all.begin(), of_all.end(), 0.0);
    for (size_t m = 0; m < of_all.size(); ++m) {
      const double reached = 1 - none_chosen(static_cast<int64_t>(m), moe.kept_groups * per_group, moe.top_k);
      expected += of_all[m] / all * reached;
    }
  }
  return expected;
}

double expected_remote_rows(const ModelConfig& config, const parallel::Layout& layout, int64_t tokens) {
  if (!config.moe || layout.a2a == parallel::MoeAllToAll::kNone) return 0;
  const auto layers = static_cast<double>(std::ranges::count(config.moe->sparse, true));
  const auto ranks = static_cast<double>(layout.tp_size);
  // A token is as likely to be on one rank as on another, so one of `ranks` of its rows stays where it is.
  return layers * static_cast<double>(tokens) * expected_ranks_of_token(*config.moe, layout.tp_size) * (ranks - 1) /
         ranks;
}

}  // namespace sluice::models
