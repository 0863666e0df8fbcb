#include "engine/load_balance/total_tokens.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

TEST(TotalTokensTest, TakesFewestTokensThenFewestRequestsThenTheFirst) {
  EXPECT_EQ(choose_total_tokens(std::vector<RankLoad>{{true, 0, 500}, {true, 9, 400}, {true, 1, 800}}, 0), 1);
  EXPECT_EQ(choose_total_tokens(std::vector<RankLoad>{{true, 5, 400}, {true, 4, 400}, {true, 4, 400}}, 0), 1);
}

}  // namespace
}  // namespace sluice::engine
