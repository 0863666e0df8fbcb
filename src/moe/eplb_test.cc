#include "moe/eplb.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <span>

#include "base/rng.h"

namespace sluice::moe {
namespace {

// The example of DeepSeek's EPLB: two layers of 12 experts in 4 groups, 4 more copies, two nodes of 4 ranks each.
const ExpertLoads kExample = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                              {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};

TEST(EplbTest, GivesThePublishedPlacement) {
  const auto got = rebalance_hierarchical(kExample, {.physical = 16, .ranks = 8, .nodes = 2, .groups = 4});
  ASSERT_TRUE(got.ok()) << got.error().message;
  EXPECT_EQ(*got, (PhysicalToLogical{{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                     {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}}));
}

TEST(EplbTest, SaysWhichNumbersDoNotFit) {
  const auto message = [](const Rebalance& to) { return rebalance_hierarchical(kExample, to).error().message; };
  EXPECT_EQ(message({.physical = 10, .ranks = 2}), "10 physical experts are too few for 12 logical ones");
  EXPECT_EQ(message({.physical = 16, .ranks = 3}), "16 physical experts cannot be divided equally among 3 ranks");
  EXPECT_EQ(message({.physical = 16, .ranks = 4, .nodes = 3, .groups = 3}),
            "4 ranks cannot be divided equally among 3 nodes");
  EXPECT_EQ(message({.physical = 16, .ranks = 4, .nodes = 2, .groups = 5}),
            "12 experts cannot be divided equally among 5 groups");
  EXPECT_EQ(message({.physical = 16, .ranks = 4, .nodes = 2, .groups = 3}),
            "3 groups cannot be divided equally among 2 nodes");
  EXPECT_FALSE(rebalance_global({{1, 2}, {1}}, {.physical = 2}).ok());
  EXPECT_FALSE(rebalance_global({{1, -2}}, {.physical = 2}).ok());
  EXPECT_FALSE(rebalance_global({}, {.physical = 2}).ok());
}

// Loads as routers make them: some experts are wanted far more often than others, and some never.
ExpertLoads draw_loads(Rng& rng, int64_t layers, int64_t experts) {
  ExpertLoads loads;
  for (int64_t layer = 0; layer < layers; ++layer) {
    std::vector<int64_t> tokens;
    for (int64_t e = 0; e < experts; ++e) {
      tokens.push_back(rng.below(8) == 0 ? 0 : static_cast<int64_t>(1 + rng.below(uint64_t{1} << (1 + rng.below(16)))));
    }
    loads.push_back(std::move(tokens));
  }
  return loads;
}

struct Drawn {
  ExpertLoads loads;
  Rebalance to;
};

Drawn draw(Rng& rng) {
  Drawn drawn;
  drawn.to.nodes = int64_t{1} << rng.below(3);
  drawn.to.ranks = drawn.to.nodes * static_cast<int64_t>(1 + rng.below(4));
  drawn.to.groups = drawn.to.nodes * static_cast<int64_t>(1 + rng.below(3));
  const int64_t logical = drawn.to.groups * static_cast<int64_t>(1 + rng.below(12));
  const int64_t least = (logical + drawn.to.ranks - 1) / drawn.to.ranks;
  drawn.to.physical = drawn.to.ranks * (least + static_cast<int64_t>(rng.below(4)));
  drawn.loads = draw_loads(rng, 2, logical);
  return drawn;
}

void expect_valid(const PhysicalToLogical& location, const Drawn& drawn) {
  ASSERT_EQ(location.size(), drawn.loads.size());
  for (const auto& layer : location) {
    ASSERT_EQ(std::ssize(layer), drawn.to.physical) << "each rank has its number";
    const std::set<int32_t> found(layer.begin(), layer.end());
    EXPECT_EQ(found.size(), drawn.loads[0].size()) << "an expert is nowhere";
    EXPECT_EQ(*found.begin(), 0);
    EXPECT_EQ(*found.rbegin(), std::ssize(drawn.loads[0]) - 1);
  }
}

// What greedy placement guarantees: when the heaviest rank got its last copy nobody with room had less, so it has at
// most what the mean is and one copy more. The copies' tokens are those that `location` shares out.
double greedy_bound(const std::vector<int64_t>& loads, std::span<const int32_t> location, int64_t ranks) {
  std::vector<double> copies(loads.size());
  for (const int32_t e : location) ++copies[static_cast<size_t>(e)];
  double heaviest = 0, sum = 0;
  for (size_t e = 0; e < loads.size(); ++e) {
    if (copies[e] == 0) continue;  // on another node
    heaviest = std::max(heaviest, static_cast<double>(loads[e]) / copies[e]);
    sum += static_cast<double>(loads[e]);
  }
  const double mean = sum / static_cast<double>(ranks);
  return sum == 0 ? 1 : mean / (mean + heaviest);
}

// Of the ranks that have these copies, which are all that their experts have.
double balancedness_within(const std::vector<int64_t>& loads, std::span<const int32_t> location, int64_t ranks) {
  std::vector<double> copies(loads.size());
  for (const int32_t e : location) ++copies[static_cast<size_t>(e)];
  const size_t each = location.size() / static_cast<size_t>(ranks);
  double most = 0, sum = 0;
  for (; !location.empty(); location = location.subspan(each)) {
    double rank = 0;
    for (const int32_t e : location.first(each)) {
      rank += static_cast<double>(loads[static_cast<size_t>(e)]) / copies[static_cast<size_t>(e)];
    }
    most = std::max(most, rank);
    sum += rank;
  }
  return sum == 0 ? 1 : sum / static_cast<double>(ranks) / most;
}

TEST(EplbTest, EveryPlacementIsWholeAndAsBalancedAsGreedyOnesAre) {
  Rng rng(11);
  for (int round = 0; round < 3000; ++round) {
    const Drawn drawn = draw(rng);
    SCOPED_TRACE(testing::Message() << "round " << round << ": " << drawn.loads[0].size() << " experts, "
                                    << drawn.to.physical << " copies, " << drawn.to.ranks << " ranks");
    const auto global = rebalance_global(drawn.loads, drawn.to);
    ASSERT_TRUE(global.ok()) << global.error().message;
    expect_valid(*global, drawn);
    const auto hierarchical = rebalance_hierarchical(drawn.loads, drawn.to);
    ASSERT_TRUE(hierarchical.ok()) << hierarchical.error().message;
    expect_valid(*hierarchical, drawn);
    for (size_t layer = 0; layer < drawn.loads.size(); ++layer) {
      const double got = expected_balancedness({drawn.loads[layer]}, {(*global)[layer]}, drawn.to.ranks);
      EXPECT_GE(got, greedy_bound(drawn.loads[layer], (*global)[layer], drawn.to.ranks) - 1e-9);
      // A node's groups stay on it, and among its ranks its copies are placed as greedily.
      const int64_t nodes = drawn.to.nodes, ranks = drawn.to.ranks / nodes;
      const auto each = static_cast<size_t>(drawn.to.physical / nodes);
      for (size_t node = 0; node < static_cast<size_t>(nodes); ++node) {
        const auto part = std::span((*hierarchical)[layer]).subspan(node * each, each);
        EXPECT_GE(balancedness_within(drawn.loads[layer], part, ranks),
                  greedy_bound(drawn.loads[layer], part, ranks) - 1e-9)
            << "node " << node;
      }
    }
  }
}

TEST(EplbTest, AGroupStaysOnOneNode) {
  Rng rng(12);
  for (int round = 0; round < 500; ++round) {
    const Drawn drawn = draw(rng);
    const auto location = rebalance_hierarchical(drawn.loads, drawn.to);
    ASSERT_TRUE(location.ok());
    const int64_t size = std::ssize(drawn.loads[0]) / drawn.to.groups, per_node = drawn.to.physical / drawn.to.nodes;
    for (const auto& layer : *location) {
      std::vector<int64_t> node_of(static_cast<size_t>(drawn.to.groups), -1);
      for (int64_t i = 0; i < std::ssize(layer); ++i) {
        int64_t& node = node_of[static_cast<size_t>(layer[static_cast<size_t>(i)] / size)];
        if (node < 0) node = i / per_node;
        ASSERT_EQ(node, i / per_node);
      }
    }
  }
}

TEST(EplbTest, CopiesGoToTheBusiest) {
  EXPECT_EQ(replicate(std::vector<double>{1, 9, 4}, 6), (std::vector<int32_t>{0, 1, 2, 1, 1, 2}));
}

TEST(EplbTest, SkewedLoadsBecomeBalanced) {
  // One expert of 64 has half of all tokens: on 8 ranks that have 8 each, its rank has more than half.
  std::vector<int64_t> loads(64, 100);
  loads[3] = 6300;
  const double before = expected_balancedness({loads}, trivial_location(1, 64, 64), 8);
  const auto after = rebalance_global({loads}, {.physical = 72, .ranks = 8});
  ASSERT_TRUE(after.ok());
  EXPECT_LT(before, 0.25);
  EXPECT_GT(expected_balancedness({loads}, *after, 8), 0.7) << "nine copies on eight ranks";
}

TEST(EplbTest, BalancednessIsTheMeanByTheMost) {
  EXPECT_EQ(balancedness(std::vector<int64_t>{4, 4, 4, 4}), 1);
  EXPECT_EQ(balancedness(std::vector<int64_t>{8, 0, 0, 0}), 0.25);
  EXPECT_EQ(balancedness(std::vector<int64_t>{0, 0}), 1);
  EXPECT_DOUBLE_EQ(expected_balancedness({{6, 2}, {0, 0}}, {{0, 1}, {0, 1}}, 2), 4.0 / 6) << "empty layers say nothing";
}

}  // namespace
}  // namespace sluice::moe
