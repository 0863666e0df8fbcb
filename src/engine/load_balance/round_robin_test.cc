#include "engine/load_balance/round_robin.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

TEST(RoundRobinTest, GoesOnAfterThePreviousRankAndSkipsTheInactive) {
  const std::vector<RankLoad> ranks = {{true}, {false}, {true, 1000, 1000}, {true}};
  EXPECT_EQ(choose_round_robin(ranks, -1), 0);
  EXPECT_EQ(choose_round_robin(ranks, 0), 2);
  EXPECT_EQ(choose_round_robin(ranks, 1), 2);
  EXPECT_EQ(choose_round_robin(ranks, 2), 3);
  EXPECT_EQ(choose_round_robin(ranks, 3), 0);
}

}  // namespace
}  // namespace sluice::engine
