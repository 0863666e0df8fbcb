// What is set and what is counted of moving experts while a rank serves (models/rebalancer.h).
#pragma once

#include <cstdint>
#include <iterator>
#include <vector>

namespace sluice::moe {

struct RebalanceOptions {
  int64_t steps = 1000;         // of the instance, after which the loads are looked at
  int64_t layers_at_once = 0;   // moved between two steps; 0 = all
  double at_most_balanced = 1;  // nothing is moved if the steps were better balanced, in the mean
};

// Upper bounds of balancedness, 0 to 1.
inline constexpr double kBalancednessBounds[] = {.1, .2, .3, .4, .5, .6, .7, .8, .9, .95, 1};

// Since the start, of the instance; all zero but on its first rank. Plain words: it goes from process to process.
struct RebalanceCounts {
  enum Mode : uint8_t { kExtend, kDecode };
  // By mode: steps by their balancedness, and the sums of it.
  uint64_t steps[2][std::size(kBalancednessBounds) + 1] = {};
  double balancedness[2][std::size(kBalancednessBounds) + 1] = {};
  uint64_t layers_moved = 0;
  uint64_t layers_kept = 0;         // whose experts were not worth moving
  uint64_t layers_rolled_back = 0;  // whose experts did not arrive as they were sent
  uint64_t moved_bytes = 0;         // from rank to rank
  double seconds = 0;               // in which nothing was computed
};

// Tokens that the experts of each rank got, copies included, in the windows that ended since this was last asked for.
struct RankTokens {
  std::vector<int64_t> layers;  // those with experts, by their numbers in the model
  int64_t ranks = 0;            // that divide the experts
  std::vector<int64_t> tokens;  // [layers, ranks]
  bool empty() const { return tokens.empty(); }
};

}  // namespace sluice::moe
