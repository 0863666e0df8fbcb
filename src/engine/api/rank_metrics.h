// What /metrics shows of each rank, from its load snapshot.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/backend.h"
#include "obs/metrics.h"

namespace sluice::engine {

// Use of a rank between 0 and 1: of its running slots or of its pool, whichever is fuller.
double rank_utilization(const LoadSnapshot& load);
double token_usage(const LoadSnapshot& load);

// Declares the families and sets them before each rendering. `backend` and `metrics` outlive it.
class RankMetrics {
 public:
  // `own_dp_rank`: what a server with one rank calls that rank; such a server has no label dp_rank without it.
  RankMetrics(obs::Metrics& metrics, Backend& backend, std::string model_name, size_t dp_size,
              std::optional<std::string> own_dp_rank);
  ~RankMetrics();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
