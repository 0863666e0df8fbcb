// What /metrics shows of the steps that attention groups make together: what prompts waited for, and what was computed
// beside how many groups that prefilled.
#pragma once

#include <memory>
#include <vector>

#include "engine/api/rank_metrics.h"

namespace sluice::engine {

// Used by one thread at a time.
class StepMetrics {
 public:
  // Declares the families that `options` asks for.
  StepMetrics(obs::Metrics& metrics, const RankLabels& labels, const RankMetricsOptions& options);
  ~StepMetrics();

  // Rank `i` was restarted, and counts from zero again.
  void begin_anew(size_t i);
  // Adds what rank `i`, whose labels are `with`, has counted since the last call.
  void count_up(size_t i, const obs::LabelValues& with, const LoadSnapshot& load);

 private:
  struct Last;

  obs::Metrics& metrics_;
  const RankMetricsOptions options_;
  std::vector<Last> last_;  // [ranks]
};

}  // namespace sluice::engine
