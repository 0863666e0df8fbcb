#include "parallel/progress.h"

#include <gtest/gtest.h>

namespace sluice::parallel {
namespace {

using namespace std::chrono_literals;

class TimeLeftTest : public testing::Test {
 protected:
  // Rank 2 waits for rank 0, of which nothing was seen for 5 s.
  std::string message() const {
    const std::vector<int> missing{0};
    const auto left =
        time_left({.group = "a", .call = "barrier #1", .waiting = 2, .missing = missing, .since = TimePoint(10s)},
                  signs_, TimePoint(15s), 5s, 60s);
    return left.ok() ? "(time is left)" : left.error().message;
  }

  std::vector<SignOfLife> signs_ = std::vector<SignOfLife>(4);
};

TEST_F(TimeLeftTest, ARankThatWaitsItselfIsNamedWithTheOneThatKeepsIt) {
  for (SignOfLife& sign : signs_) sign.seen(TimePoint(10s));
  EXPECT_EQ(message(), "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s");
  signs_[1].seen(TimePoint(10s), {.step = 4, .phase = Phase::kExperts, .layer = 2});
  signs_[0].waits_for(1);
  EXPECT_EQ(message(),
            "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s, which waits for "
            "rank 1 (step 4, layer 2, experts)");
}

TEST_F(TimeLeftTest, RanksThatWaitForEachOtherAreNamedOnce) {
  for (SignOfLife& sign : signs_) sign.seen(TimePoint(10s));
  signs_[0].waits_for(1);
  signs_[1].waits_for(0);
  EXPECT_EQ(message(),
            "group a: rank 2 waits in barrier #1 for rank 0: no sign of rank 0 for 5.0 s, which waits for rank 1");
}

}  // namespace
}  // namespace sluice::parallel
