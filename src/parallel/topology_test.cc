#include "parallel/topology.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

namespace sluice::parallel {
namespace {

// Calls `check` with every rank of every layout up to 16 ranks.
template <class Check>
void for_all_layouts(const Check& check) {
  for (int64_t tp = 1; tp <= 16; ++tp) {
    for (int64_t dp = 1; dp <= tp; ++dp) {
      for (int64_t ep = 1; ep <= tp; ++ep) {
        if (tp % dp != 0 || tp % ep != 0) continue;
        SCOPED_TRACE(testing::Message() << "tp " << tp << " dp " << dp << " ep " << ep);
        std::vector<Layout> ranks;
        for (int64_t rank = 0; rank < tp; ++rank) {
          ranks.push_back({.tp_rank = rank, .tp_size = tp, .dp_size = dp, .ep_size = ep});
          ASSERT_TRUE(check_layout(ranks.back()).ok());
        }
        check(ranks);
      }
    }
  }
}

TEST(PartOfTest, PartsFollowEachOtherAndDifferByOneAtMost) {
  for (int64_t total = 0; total < 40; ++total) {
    for (int64_t size = 1; size < 9; ++size) {
      int64_t next = 0;
      for (int64_t rank = 0; rank < size; ++rank) {
        const Slice part = part_of(total, {rank, size});
        EXPECT_EQ(part.first, next);
        EXPECT_GE(part.count, total / size);
        EXPECT_LE(part.count, total / size + 1);
        next = part.end();
      }
      EXPECT_EQ(next, total);
    }
  }
}

TEST(TopologyTest, EveryRankHasOnePlaceInEveryGroup) {
  for_all_layouts([](const std::vector<Layout>& ranks) {
    std::map<int64_t, std::set<int64_t>> attention, experts;
    for (const Layout& rank : ranks) {
      EXPECT_TRUE(attention[rank.attention_dp().rank].insert(rank.attention_tp().rank).second);
      EXPECT_TRUE(experts[rank.experts().rank].insert(rank.expert_tp().rank).second);
      EXPECT_EQ(rank.tp_rank, rank.attention_dp().rank * rank.attention_tp_size() + rank.attention_tp().rank);
      EXPECT_EQ(rank.tp_rank, rank.experts().rank * rank.expert_tp_size() + rank.expert_tp().rank);
    }
    EXPECT_EQ(std::ssize(attention), ranks[0].dp_size);
    EXPECT_EQ(std::ssize(experts), ranks[0].ep_size);
    for (const auto& [group, members] : attention) EXPECT_EQ(std::ssize(members), ranks[0].attention_tp_size());
    for (const auto& [group, members] : experts) EXPECT_EQ(std::ssize(members), ranks[0].expert_tp_size());
    EXPECT_EQ(std::ranges::count_if(ranks, &Layout::leads), ranks[0].dp_size);
  });
}

TEST(TopologyTest, TheTableOfTheReference) {
  struct Row {
    int64_t tp, dp, ep, attention_tp, expert_tp;
    std::vector<int64_t> dp_ranks;
  };
  const Row rows[] = {{8, 8, 8, 1, 1, {0, 1, 2, 3, 4, 5, 6, 7}},
                      {8, 4, 8, 2, 1, {0, 0, 1, 1, 2, 2, 3, 3}},
                      {8, 4, 1, 2, 8, {0, 0, 1, 1, 2, 2, 3, 3}},
                      {8, 2, 8, 4, 1, {0, 0, 0, 0, 1, 1, 1, 1}},
                      {16, 2, 16, 8, 1, {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}}};
  for (const Row& row : rows) {
    std::vector<int64_t> dp_ranks;
    for (int64_t rank = 0; rank < row.tp; ++rank) {
      const Layout layout{.tp_rank = rank, .tp_size = row.tp, .dp_size = row.dp, .ep_size = row.ep};
      EXPECT_EQ(layout.attention_tp_size(), row.attention_tp);
      EXPECT_EQ(layout.expert_tp_size(), row.expert_tp);
      dp_ranks.push_back(layout.attention_dp().rank);
    }
    EXPECT_EQ(dp_ranks, row.dp_ranks);
  }
}

TEST(TopologyTest, SizesThatDoNotDivideAreRefusedWithTheNearestThatDo) {
  const auto message = [](const Layout& layout) { return check_layout(layout).error().message; };
  EXPECT_EQ(message({.tp_size = 8, .dp_size = 3}),
            "--dp-size 3 does not divide --tp-size 8; the nearest values that do: 2, 4");
  EXPECT_EQ(message({.tp_size = 4, .dp_size = 9}),
            "--dp-size 9 does not divide --tp-size 4; the nearest values that do: 4");
  EXPECT_EQ(message({.tp_size = 6, .ep_size = 4}),
            "--ep-size 4 does not divide --tp-size 6; the nearest values that do: 3, 6");
  EXPECT_EQ(message({.tp_size = 8, .ep_size = 2, .a2a = MoeAllToAll::kDeepEp}),
            "--moe-a2a-backend deepep needs --ep-size 8, that of --tp-size, not 2");
}

}  // namespace
}  // namespace sluice::parallel
