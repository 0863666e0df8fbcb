// Where the copies of experts go, so that ranks get about as many tokens each (DeepSeek's EPLB). Pure functions
// of the loads.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace sluice::moe {

// For each layer of the model and each physical expert, the logical one that it is a copy of. Rank r of `ranks` has an
// equal part of the physical ones, the r-th.
using PhysicalToLogical = std::vector<std::vector<int32_t>>;
// For each layer of the model, the tokens of each logical expert.
using ExpertLoads = std::vector<std::vector<int64_t>>;

struct Rebalance {
  int64_t physical = 0;  // experts of a layer with their copies; a multiple of `ranks`
  int64_t ranks = 1;     // a multiple of `nodes`
  int64_t nodes = 1;
  int64_t groups = 1;  // of experts that follow each other, of which a token reaches few
};

// Global: the copies go to whatever ranks. kInvalidArgument says which number does not fit.
Result<PhysicalToLogical> rebalance_global(const ExpertLoads& loads, const Rebalance& to);
// Hierarchical: groups go to nodes first, so that a token whose groups are few reaches few nodes; then each node makes
// copies of its experts, and divides them among its ranks. `groups` must be a multiple of `nodes`.
Result<PhysicalToLogical> rebalance_hierarchical(const ExpertLoads& loads, const Rebalance& to);

// Physical expert i is logical expert i modulo their number.
PhysicalToLogical trivial_location(int64_t layers, int64_t logical, int64_t physical);

// Of a layer: the mean over ranks of their tokens, by those of the rank that has most; 1 where there are none.
double balancedness(std::span<const int64_t> rank_tokens);
// The mean over layers that have tokens, if the copies of an expert share its tokens equally.
double expected_balancedness(const ExpertLoads& loads, const PhysicalToLogical& location, int64_t ranks);

// Items by weight, the heaviest first, each to the lightest pack that has room: the pack of each. All packs get equally
// many items, so `packs` divides their number.
std::vector<int64_t> pack_evenly(std::span<const double> weights, int64_t packs);
// `physical` experts: all logical ones, then copies, each of the one whose copies have most tokens.
std::vector<int32_t> replicate(std::span<const double> loads, int64_t physical);

}  // namespace sluice::moe
