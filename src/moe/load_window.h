// What the experts of an instance got in a number of steps: counted by each rank, put together by all of them, so that
// all come to the same numbers.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/result.h"
#include "moe/eplb.h"
#include "parallel/communicator.h"

namespace sluice::moe {

// Used by the rank's thread; all ranks add the same steps.
class LoadWindow {
 public:
  struct Experts {
    int64_t layers = 0;   // with experts
    int64_t logical = 0;  // of a layer
    int64_t own = 0;      // copies on this rank
    int64_t ranks = 1;    // that divide them
    int64_t rank = 0;     // this one, among those
    bool reports = true;  // false: another rank has the same and counts the same tokens
  };
  explicit LoadWindow(const Experts& experts);

  // Forgets all. `own` [layers, own] are the logical numbers of this rank's copies, `loads` [layers, own] the tokens
  // that they got since the rank's start.
  void restart(std::vector<int32_t> own, std::vector<int64_t> loads);
  // After a step.
  void add(std::vector<int64_t> loads, bool extend);
  int64_t steps() const { return steps_; }

  struct Sums {
    ExpertLoads loads;                 // [layers with experts][logical]
    std::vector<int64_t> rank_tokens;  // [layers with experts, ranks] that each rank's copies got
    // Of the latest steps, at most kKept.
    std::vector<double> balancedness;  // mean over layers
    std::vector<bool> extend;
    double mean() const;
  };
  static constexpr size_t kKept = 1000;
  // A call of `all`, on all ranks at once.
  Result<Sums> sum(parallel::Communicator& all) const;

 private:
  struct Step {
    bool extend = false;
    std::vector<int64_t> tokens;  // [layers] of this rank's experts
  };

  const Experts experts_;
  std::vector<int32_t> own_;
  std::vector<int64_t> before_;
  std::vector<int64_t> counts_;  // [layers, logical]
  std::vector<int64_t> tokens_;  // [layers] of this rank's copies
  std::deque<Step> latest_;
  int64_t steps_ = 0;
};

}  // namespace sluice::moe
