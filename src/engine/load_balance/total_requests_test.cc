#include "engine/load_balance/total_requests.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

TEST(TotalRequestsTest, TakesTheFirstOfThoseWithFewestRequestsWhateverTheirTokens) {
  EXPECT_EQ(choose_total_requests(std::vector<RankLoad>{{true, 3, 0}, {true, 2, 900}, {true, 2, 0}}, 0), 1);
  EXPECT_EQ(choose_total_requests(std::vector<RankLoad>{{true, 3, 0}, {false, 0, 0}, {true, 4, 0}}, 0), 0);
}

}  // namespace
}  // namespace sluice::engine
