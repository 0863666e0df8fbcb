#include "moe/expert_moves.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"

namespace sluice::moe {
namespace {

using Places = std::vector<int32_t>;

TEST(ExpertMovesTest, WhatARankHasStaysWhereItIs) {
  // Two ranks of three places.
  const Places now{0, 1, 2, 3, 0, 4};
  EXPECT_EQ(keep_places(now, Places{2, 4, 0, 0, 1, 3}, 2), (Places{0, 4, 2, 3, 0, 1}));
  EXPECT_EQ(keep_places(now, now, 2), now);
  // Two copies where there was one.
  EXPECT_EQ(keep_places(now, Places{1, 1, 2, 3, 0, 4}, 2), (Places{1, 1, 2, 3, 0, 4}));
}

TEST(ExpertMovesTest, AnExpertComesFromItsOwnRankIfThereIsOneElseFromItsCopiesInTurn) {
  const Places now{0, 1, 2, 3, 0, 4};
  EXPECT_EQ(moves_between(now, Places{0, 1, 1, 3, 0, 4}, 2), (std::vector<ExpertMove>{{2, 1}}));
  // Three ranks of two: the copies of expert 0 are at 0 and 2, and the third rank gets two of it.
  const std::vector<ExpertMove> moves = moves_between(Places{0, 1, 0, 2, 3, 4}, Places{0, 1, 0, 2, 0, 0}, 3);
  EXPECT_EQ(moves, (std::vector<ExpertMove>{{4, 0}, {5, 2}}));
  EXPECT_TRUE(moves_between(now, now, 2).empty());
}

TEST(ExpertMovesTest, MovesMakeAnyPlacementOfAnyOther) {
  Rng rng(11);
  for (int round = 0; round < 500; ++round) {
    const auto ranks = static_cast<int64_t>(1 + rng.below(6));
    const auto each = static_cast<int64_t>(1 + rng.below(5));
    const auto logical = static_cast<int32_t>(1 + rng.below(static_cast<uint64_t>(ranks * each)));
    const auto draw = [&] {
      Places places;
      for (int32_t e = 0; e < ranks * each; ++e) {
        places.push_back(e < logical ? e : static_cast<int32_t>(rng.below(static_cast<uint64_t>(logical))));
      }
      std::shuffle(places.begin(), places.end(), rng);
      return places;
    };
    const Places now = draw(), wanted = keep_places(now, draw(), ranks);
    Places after = now;
    int64_t last = -1;
    for (const ExpertMove& move : moves_between(now, wanted, ranks)) {
      EXPECT_GT(move.to, last);
      last = move.to;
      after[static_cast<size_t>(move.to)] = now[static_cast<size_t>(move.from)];
      // Nothing travels that is here.
      const auto first = now.begin() + move.to / each * each;
      const bool is_here = std::find(first, first + each, wanted[static_cast<size_t>(move.to)]) != first + each;
      EXPECT_EQ(move.from / each == move.to / each, is_here);
    }
    EXPECT_EQ(after, wanted);
  }
}

}  // namespace
}  // namespace sluice::moe
