#include "models/layers/common_weights.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "base/rng.h"

namespace sluice::models {
namespace {

using Declared = std::vector<std::vector<WeightIdentity>>;

TEST(CommonWeightsTest, WhatOneRankHasIsItsOwnAndWhatSeveralHaveLiesThereOnce) {
  // Two groups of two ranks: halves of attention (1, 2), a router that all have (3), experts of each (4 to 7).
  const Declared declared = {{{1, 100}, {3, 10}, {4, 500}},
                             {{2, 100}, {3, 10}, {5, 500}},
                             {{1, 100}, {3, 10}, {6, 500}},
                             {{2, 100}, {3, 10}, {7, 500}}};
  for (size_t rank = 0; rank < 4; ++rank) {
    const CommonWeights common = find_common(declared, rank);
    EXPECT_EQ(common.bytes, 128u + 128 + 64);
    ASSERT_TRUE(common.entries[0] && common.entries[1]);
    EXPECT_EQ(common.entries[0]->owners, 2);
    EXPECT_EQ(common.entries[1]->owners, 4);
    EXPECT_FALSE(common.entries[2]);
    EXPECT_EQ(proportional_bytes(declared[rank], common), 50 + 2 + 500);
  }
  EXPECT_EQ(find_common(declared, 0).entries[0]->offset, find_common(declared, 2).entries[0]->offset);
  EXPECT_NE(find_common(declared, 0).entries[0]->offset, find_common(declared, 1).entries[0]->offset);
}

TEST(CommonWeightsTest, WhatMovesOrIsOfAnotherSizeIsNotShared) {
  const Declared declared = {{{0, 100}, {8, 64}}, {{0, 100}, {8, 128}}};
  EXPECT_EQ(find_common(declared, 0).bytes, 0u);
  EXPECT_FALSE(find_common(declared, 1).entries[0]);
  EXPECT_FALSE(find_common(declared, 1).entries[1]);
}

TEST(CommonWeightsTest, OneThatIsDeclaredTwiceIsThereOnce) {
  const Declared declared = {{{9, 64}, {9, 64}}, {{9, 64}}};
  const CommonWeights common = find_common(declared, 0);
  EXPECT_EQ(common.bytes, 64u);
  EXPECT_EQ(common.entries[0]->offset, common.entries[1]->offset);
  EXPECT_EQ(common.entries[0]->owners, 2);
  EXPECT_TRUE(common.entries[0]->own);
  EXPECT_FALSE(common.entries[1]->own) << "packed twice";
  EXPECT_EQ(proportional_bytes(declared[0], common), 32);
  EXPECT_EQ(proportional_bytes(declared[1], find_common(declared, 1)), 32);
  // Two that may not be shared are two.
  const Declared moving = {{{0, 64}, {0, 64}}, {}};
  EXPECT_EQ(proportional_bytes(moving[0], find_common(moving, 0)), 128);
}

// Whatever ranks have: each common weight is packed once, by one who has it, nothing overlaps, and the work is even.
TEST(CommonWeightsTest, EachIsPackedOnceAndTheWorkIsSpread) {
  Rng rng(7);
  for (int round = 0; round < 200; ++round) {
    const size_t ranks = 2 + rng.below(7);
    Declared declared(ranks);
    std::map<int64_t, size_t> owners;
    for (int64_t weight = 1; weight < 60; ++weight) {
      const auto bytes = static_cast<int64_t>(1 + rng.below(5000));
      for (auto& of_rank : declared) {
        if (rng.below(3) > 0) of_rank.push_back({weight, bytes}), ++owners[weight];
      }
    }
    std::map<int64_t, size_t> packed;                  // how often
    std::map<size_t, std::pair<int64_t, size_t>> lie;  // by offset: which, and its bytes
    for (size_t rank = 0; rank < ranks; ++rank) {
      const CommonWeights common = find_common(declared, rank);
      ASSERT_EQ(common.entries.size(), declared[rank].size());
      for (size_t i = 0; i < common.entries.size(); ++i) {
        const WeightIdentity& weight = declared[rank][i];
        ASSERT_EQ(common.entries[i].has_value(), owners[weight.hash] > 1);
        if (!common.entries[i]) continue;
        packed[weight.hash] += common.entries[i]->own;
        const auto [at, first] = lie.try_emplace(common.entries[i]->offset, weight.hash, weight.bytes);
        EXPECT_EQ(at->second.first, weight.hash) << "two at one place";
        EXPECT_LE(common.entries[i]->offset + static_cast<size_t>(weight.bytes), common.bytes);
      }
    }
    size_t end = 0;
    for (const auto& [offset, weight] : lie) {
      EXPECT_GE(offset, end);
      end = offset + weight.second;
    }
    for (const auto& [weight, count] : owners) EXPECT_EQ(packed[weight], count > 1 ? 1u : 0u);
  }
  // All have all: no rank packs more than its share and the largest weight.
  Declared alike(4);
  int64_t whole = 0;
  for (int64_t weight = 1; weight <= 40; ++weight) {
    whole += 100 * weight;
    for (auto& of_rank : alike) of_rank.push_back({weight, 100 * weight});
  }
  for (size_t rank = 0; rank < 4; ++rank) {
    const CommonWeights common = find_common(alike, rank);
    int64_t mine = 0;
    for (size_t i = 0; i < common.entries.size(); ++i) mine += common.entries[i]->own ? alike[rank][i].bytes : 0;
    EXPECT_LE(mine, whole / 4 + 4000);
  }
}

}  // namespace
}  // namespace sluice::models
