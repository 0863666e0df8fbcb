// What /metrics shows of each rank, from its load snapshot.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/backend.h"
#include "obs/metrics.h"
#include "parallel/topology.h"

namespace sluice::engine {

// Use of a rank between 0 and 1: of its running slots or of its pool, whichever is fuller.
double rank_utilization(const LoadSnapshot& load);
double token_usage(const LoadSnapshot& load);

// The runtime's labels of what a rank measures.
class RankLabels {
 public:
  // `own_dp_rank`: what a server with one rank calls that rank; such a server has no label dp_rank without it. `layout`
  // of an instance: its attention groups are the ranks that are measured, or each instance's first rank is.
  RankLabels(std::string model_name, size_t ranks, std::optional<std::string> own_dp_rank,
             const parallel::Layout& layout = {});

  size_t ranks() const { return ranks_; }
  std::vector<std::string_view> names() const;
  obs::LabelValues of(size_t rank) const;

 private:
  const std::string model_name_;
  const size_t ranks_;
  const std::optional<std::string> own_dp_rank_;
  const parallel::Layout layout_;
};

// What there is to show.
struct RankMetricsOptions {
  int64_t page_size = 1;
  bool states = false;           // the model keeps some of each sequence, beside its KV
  bool prefill_delayer = false;  // --enable-prefill-delayer
  int64_t expert_ranks = 0;      // that divide the experts, with --enable-eplb
  bool cooperation = false;      // SGLANG_ENABLE_METRICS_DP_ATTENTION
};

// Declares the families and sets them before each rendering. `backend` and `metrics` outlive it.
class RankMetrics {
 public:
  RankMetrics(obs::Metrics& metrics, Backend& backend, RankLabels labels, const RankMetricsOptions& options);
  ~RankMetrics();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
