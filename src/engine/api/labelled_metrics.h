// Metrics of requests by labels that clients give them: who uses the server, for what. Their values come from outside,
// so only so many different ones get series of their own.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "engine/api/sample_meter.h"

namespace sluice::engine {

inline constexpr size_t kMostLabelSets = 100;        // different sets of values
inline constexpr std::string_view kOther = "other";  // what all values of further sets become

class LabelledMetrics {
 public:
  // `names`: of the labels that clients may give, those of request_families().
  LabelledMetrics(obs::Metrics& metrics, std::string model_name, RankLabels ranks, const Clock& clock,
                  std::vector<std::string> names);

  const std::vector<std::string>& names() const { return names_; }
  // Of requests with these values, in the order of the names; empty: none was given, and each is "". Any thread.
  std::shared_ptr<RequestMetrics> of(const std::vector<std::string>& values);

 private:
  // Constant after construction.
  obs::Metrics& metrics_;
  const std::string model_name_;
  const RankLabels ranks_;
  const Clock& clock_;
  const std::vector<std::string> names_;
  const std::shared_ptr<RequestMetrics> without_;

  std::mutex mu_;
  std::map<std::vector<std::string>, std::shared_ptr<RequestMetrics>> sets_;  // guarded by mu_
};

}  // namespace sluice::engine
