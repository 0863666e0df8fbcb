#include "moe/load_window.h"

#include <gtest/gtest.h>

#include "parallel/group_fixture.h"
#include "parallel/inproc.h"

namespace sluice::moe {
namespace {

// Two layers of three experts on two ranks, each of which has two: one expert has two copies.
LoadWindow window_of(int rank, bool reports = true) {
  LoadWindow window({.layers = 2, .logical = 3, .own = 2, .ranks = 2, .rank = rank, .reports = reports});
  // Counts go on from what was before.
  window.restart(rank == 0 ? std::vector<int32_t>{0, 1, 0, 1} : std::vector<int32_t>{2, 0, 0, 2}, {5, 5, 5, 5});
  return window;
}

TEST(LoadWindowTest, AllRanksComeToTheSameSums) {
  auto ranks = parallel::make_inproc_group(2);
  parallel::on_each(ranks, [](parallel::Communicator& all) {
    LoadWindow window = window_of(all.rank());
    if (all.rank() == 0) {
      window.add({9, 5, 5, 5}, true);  // 4 in the first layer
      window.add({9, 7, 6, 5}, false);
    } else {
      window.add({5, 7, 5, 5}, true);  // 2 in the first layer
      window.add({7, 7, 8, 5}, false);
    }
    EXPECT_EQ(window.steps(), 2);
    const auto sums = window.sum(all);
    ASSERT_OK(sums);
    EXPECT_EQ(sums->loads, (ExpertLoads{{4 + 2, 2, 2}, {1 + 3, 0, 0}}));
    EXPECT_EQ(sums->rank_tokens, (std::vector<int64_t>{4 + 2, 2 + 2, 1, 3}));
    // Mean by most: (3/4 + nothing) / 2, then (2/2 + 2/3) / 2.
    ASSERT_EQ(sums->balancedness.size(), 2u);
    EXPECT_DOUBLE_EQ(sums->balancedness[0], (0.75 + 1) / 2);
    EXPECT_DOUBLE_EQ(sums->balancedness[1], (1 + 2.0 / 3) / 2);
    EXPECT_EQ(sums->extend, (std::vector<bool>{true, false}));
    EXPECT_DOUBLE_EQ(sums->mean(), (sums->balancedness[0] + sums->balancedness[1]) / 2);
  });
}

TEST(LoadWindowTest, RanksThatShareExpertsCountOnce) {
  auto ranks = parallel::make_inproc_group(4);
  parallel::on_each(ranks, [](parallel::Communicator& all) {
    LoadWindow window = window_of(all.rank() / 2, all.rank() % 2 == 0);
    window.add(all.rank() < 2 ? std::vector<int64_t>{8, 5, 6, 5} : std::vector<int64_t>{6, 5, 6, 5}, false);
    const auto sums = window.sum(all);
    ASSERT_OK(sums);
    EXPECT_EQ(sums->loads, (ExpertLoads{{3, 0, 1}, {2, 0, 0}}));
    EXPECT_DOUBLE_EQ(sums->mean(), (2.0 / 3 + 1) / 2);
  });
}

TEST(LoadWindowTest, LoadsAreOfAllStepsAndBalancednessOfTheLatest) {
  auto ranks = parallel::make_inproc_group(1);
  LoadWindow window({.layers = 1, .logical = 1, .own = 1, .ranks = 1, .reports = true});
  window.restart({0}, {0});
  const auto steps = static_cast<int64_t>(LoadWindow::kKept) + 5;
  for (int64_t step = 1; step <= steps; ++step) window.add({step}, false);
  auto sums = window.sum(*ranks[0]);
  ASSERT_OK(sums);
  EXPECT_EQ(sums->loads[0][0], steps);
  EXPECT_EQ(sums->balancedness.size(), LoadWindow::kKept);
  window.restart({0}, {steps});
  EXPECT_EQ(window.steps(), 0);
  sums = window.sum(*ranks[0]);
  ASSERT_OK(sums);
  EXPECT_EQ(sums->loads[0][0], 0);
  EXPECT_EQ(sums->mean(), 1);
}

}  // namespace
}  // namespace sluice::moe
