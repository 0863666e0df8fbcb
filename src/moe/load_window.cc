#include "moe/load_window.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace sluice::moe {

using parallel::Element;
using parallel::Reduction;

LoadWindow::LoadWindow(const Experts& experts)
    : experts_(experts),
      counts_(static_cast<size_t>(experts.layers * experts.logical)),
      tokens_(static_cast<size_t>(experts.layers)) {}

void LoadWindow::restart(std::vector<int32_t> own, std::vector<int64_t> loads) {
  SLUICE_CHECK(own.size() == loads.size() && std::ssize(own) == experts_.layers * experts_.own,
               "{} experts and the loads of {} in {} layers of {}", own.size(), loads.size(), experts_.layers,
               experts_.own);
  own_ = std::move(own);
  before_ = std::move(loads);
  std::ranges::fill(counts_, 0);
  std::ranges::fill(tokens_, 0);
  latest_.clear();
  steps_ = 0;
}

void LoadWindow::add(std::vector<int64_t> loads, bool extend) {
  ++steps_;
  Step step{extend, {}};
  for (int64_t layer = 0; layer < experts_.layers; ++layer) {
    int64_t tokens = 0;
    for (int64_t i = layer * experts_.own; i < (layer + 1) * experts_.own; ++i) {
      const auto at = static_cast<size_t>(i);
      const int64_t got = loads[at] - before_[at];
      counts_[static_cast<size_t>(layer * experts_.logical + own_[at])] += got;
      tokens += got;
    }
    step.tokens.push_back(tokens);
    tokens_[static_cast<size_t>(layer)] += tokens;
  }
  before_ = std::move(loads);
  latest_.push_back(std::move(step));
  if (latest_.size() > kKept) latest_.pop_front();
}

double LoadWindow::Sums::mean() const {
  if (balancedness.empty()) return 1;
  return std::accumulate(balancedness.begin(), balancedness.end(), 0.0) / static_cast<double>(balancedness.size());
}

Result<LoadWindow::Sums> LoadWindow::sum(parallel::Communicator& all) const {
  std::vector<int64_t> counts(counts_.size()), most, total;
  std::vector<int64_t> by_rank(tokens_.size() * static_cast<size_t>(experts_.ranks));
  for (const Step& step : latest_) most.insert(most.end(), step.tokens.begin(), step.tokens.end());
  total = most;
  if (experts_.reports) {
    counts = counts_;
    for (size_t layer = 0; layer < tokens_.size(); ++layer) {
      by_rank[layer * static_cast<size_t>(experts_.ranks) + static_cast<size_t>(experts_.rank)] = tokens_[layer];
    }
  } else {
    std::ranges::fill(total, 0);
  }
  SLUICE_TRY_VOID(all.all_reduce({}, Element::kI64, counts.data(), counts.data(), std::ssize(counts)));
  SLUICE_TRY_VOID(all.all_reduce({}, Element::kI64, most.data(), most.data(), std::ssize(most), Reduction::kMax));
  SLUICE_TRY_VOID(all.all_reduce({}, Element::kI64, total.data(), total.data(), std::ssize(total)));
  SLUICE_TRY_VOID(all.all_reduce({}, Element::kI64, by_rank.data(), by_rank.data(), std::ssize(by_rank)));
  Sums sums{.rank_tokens = std::move(by_rank)};
  for (auto at = counts.begin(); at != counts.end(); at += experts_.logical) {
    sums.loads.emplace_back(at, at + experts_.logical);
  }
  size_t at = 0;
  for (const Step& step : latest_) {
    double sum = 0;
    for (int64_t layer = 0; layer < experts_.layers; ++layer, ++at) {
      sum += most[at] == 0 ? 1.0 : static_cast<double>(total[at]) / static_cast<double>(experts_.ranks * most[at]);
    }
    sums.balancedness.push_back(sum / static_cast<double>(experts_.layers));
    sums.extend.push_back(step.extend);
  }
  return sums;
}

}  // namespace sluice::moe
