#include "engine/api/labelled_metrics.h"

#include <utility>

namespace sluice::engine {
LabelledMetrics::LabelledMetrics(obs::Metrics& metrics, std::string model_name, RankLabels ranks, const Clock& clock,
                                 std::vector<std::string> names)
    : metrics_(metrics),
      model_name_(std::move(model_name)),
      ranks_(std::move(ranks)),
      clock_(clock),
      names_(std::move(names)),
      without_(std::make_shared<RequestMetrics>(metrics_, model_name_, ranks_, clock_,
                                                std::vector<std::string>(names_.size()))) {}

std::shared_ptr<RequestMetrics> LabelledMetrics::of(const std::vector<std::string>& values) {
  if (values.empty()) return without_;
  const std::lock_guard lock(mu_);
  const auto found = sets_.find(values);
  if (found != sets_.end()) return found->second;
  const auto others = std::vector<std::string>(names_.size(), std::string(kOther));
  const auto& shown = sets_.size() < kMostLabelSets ? values : others;
  auto& metrics = sets_[shown];  // what is left after the last one
  if (metrics == nullptr) metrics = std::make_shared<RequestMetrics>(metrics_, model_name_, ranks_, clock_, shown);
  return metrics;
}

}  // namespace sluice::engine
