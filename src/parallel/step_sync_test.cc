#include "parallel/step_sync.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace sluice::parallel {
namespace {

std::vector<StepRow> rows_of(const Layout& layout) {
  return std::vector<StepRow>(static_cast<size_t>(layout.tp_size), {.seq = 7, .plan_hash = 3});
}

TEST(StepSyncTest, LeadersSpeakForTheirGroups) {
  const Layout layout{.tp_size = 4, .dp_size = 2};
  auto rows = rows_of(layout);
  rows[0].num_tokens = 5;
  rows[0].num_tokens_for_logprob = 2;
  rows[0].is_extend_in_batch = 1;
  rows[2].num_tokens = 3;
  rows[2].batch_words = 40;
  rows[3].num_tokens = 99;  // not a leader's
  const auto plan = derive_plan(rows, layout);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_TRUE(plan->run && plan->is_extend_in_batch && !plan->park);
  EXPECT_EQ(plan->group_tokens, (std::vector<int64_t>{5, 3}));
  EXPECT_EQ(plan->group_logits, (std::vector<int64_t>{2, 0}));
  EXPECT_EQ(plan->batch_words, (std::vector<int64_t>{0, 40}));
}

TEST(StepSyncTest, AStepIsSplitWhereAllCanAndThoseWithWorkAreInOneMode) {
  const Layout layout{.tp_size = 4, .dp_size = 2};
  auto rows = rows_of(layout);
  const auto set = [&](size_t rank, int64_t tokens, int64_t can_split, ForwardMode mode) {
    rows[rank].num_tokens = tokens;
    rows[rank].local_can_run_tbo = can_split;
    rows[rank].local_forward_mode = static_cast<int64_t>(mode);
  };
  set(0, 5, 3, ForwardMode::kDecode);
  set(2, 9, 5, ForwardMode::kDecode);
  EXPECT_EQ(derive_plan(rows, layout)->first_half, (std::vector<int64_t>{2, 4}));
  set(2, 0, 1, ForwardMode::kIdle);
  EXPECT_EQ(derive_plan(rows, layout)->first_half, (std::vector<int64_t>{2, 0})) << "an idle group splits nothing";
  set(2, 9, 5, ForwardMode::kExtend);
  EXPECT_TRUE(derive_plan(rows, layout)->first_half.empty()) << "one decodes and one prefills";
  set(0, 7, 4, ForwardMode::kExtend);
  EXPECT_EQ(derive_plan(rows, layout)->first_half, (std::vector<int64_t>{3, 4}));
  set(0, 1, 0, ForwardMode::kExtend);
  EXPECT_TRUE(derive_plan(rows, layout)->first_half.empty()) << "one token has no halves";
  set(0, 0, 0, ForwardMode::kIdle);
  EXPECT_TRUE(derive_plan(rows, layout)->first_half.empty()) << "it is not switched on there";
}

TEST(StepSyncTest, AllParkOnlyWhenTheSameWorkHasReachedAll) {
  const Layout layout{.tp_size = 4, .dp_size = 4};
  auto rows = rows_of(layout);
  for (StepRow& row : rows) row.work_seen = 12;
  EXPECT_TRUE(derive_plan(rows, layout)->park);
  rows[3].work_seen = 13;
  EXPECT_FALSE(derive_plan(rows, layout)->park);
  EXPECT_FALSE(derive_plan(rows, layout)->run);
  EXPECT_EQ(derive_plan(rows, layout)->seen_by_all, 12u);
  rows[3].work_seen = 12;
  rows[1].more_to_come = 1;
  EXPECT_FALSE(derive_plan(rows, layout)->park) << "what is to come would find the others asleep";
}

TEST(StepSyncTest, WhatMustBeEqualAndIsNotIsNamed) {
  const Layout layout{.tp_size = 3};
  const auto message = [&](int64_t StepRow::*column, int64_t value) {
    auto rows = rows_of(layout);
    rows[2].*column = value;
    const auto plan = derive_plan(rows, layout);
    return plan.ok() ? "(accepted)" : plan.error().message;
  };
  EXPECT_EQ(message(&StepRow::seq, 8), "ranks are out of step at exchange 7: seq is 7 on rank 0 and 8 on rank 2");
  EXPECT_EQ(message(&StepRow::kind, 4), "ranks are out of step at exchange 7: kind is 1 on rank 0 and 4 on rank 2");
  EXPECT_EQ(message(&StepRow::plan_hash, 4),
            "ranks are out of step at exchange 7: plan_hash is 3 on rank 0 and 4 on rank 2");
  EXPECT_EQ(message(&StepRow::controls, 4),
            "ranks are out of step at exchange 7: controls is 0 on rank 0 and 4 on rank 2");
  EXPECT_EQ(message(&StepRow::expert_places, 4),
            "ranks are out of step at exchange 7: expert_places is 0 on rank 0 and 4 on rank 2");
  EXPECT_EQ(message(&StepRow::leader_controls, 4), "(accepted)") << "rank 2 does not lead";
}

TEST(StepSyncTest, LeadersHaveTheSameControlMessages) {
  const Layout layout{.tp_size = 4, .dp_size = 2};
  auto rows = rows_of(layout);
  rows[2].leader_controls = 5;
  EXPECT_EQ(derive_plan(rows, layout).error().message,
            "ranks are out of step at exchange 7: leader_controls is 0 on rank 0 and 5 on rank 2");
}

TEST(StepSyncTest, AnotherConfigurationIsNamedInTheFirstExchange) {
  const Layout layout{.tp_size = 2};
  std::vector<StepRow> rows(2, {.seq = 1, .plan_hash = first_hash(layout, 1)});
  ASSERT_TRUE(derive_plan(rows, layout).ok());
  rows[1].plan_hash = first_hash(layout, 2);
  const std::string message = derive_plan(rows, layout).error().message;
  EXPECT_NE(message.find("on rank 1; their layout, options, version or model differ"), std::string::npos) << message;
}

TEST(StepSyncTest, AFixedShapeHasRoomForTheGroupWithMostTokens) {
  const auto rows = [](std::vector<int64_t> tokens, int64_t most) {
    return fixed_rows({.run = true, .group_tokens = std::move(tokens)}, most);
  };
  EXPECT_EQ(rows({1, 0}, 64), 1);
  EXPECT_EQ(rows({2, 3}, 64), 4);
  EXPECT_EQ(rows({5, 3, 0, 1}, 64), 8);
  EXPECT_EQ(rows({9}, 64), 16);
  EXPECT_EQ(rows({9}, 12), 12) << "not more than fit";
  EXPECT_EQ(rows({12}, 12), 12);
  EXPECT_EQ(rows({13}, 12), 0) << "more than a shape has";
  EXPECT_EQ(rows({0, 0}, 12), 0);
  EXPECT_EQ(rows({1}, 0), 0) << "there are none";
  EXPECT_EQ(fixed_rows({.run = true, .is_extend_in_batch = true, .group_tokens = {1, 9}}, 64), 0);

  std::set<int64_t> shapes;
  for (int64_t tokens = 1; tokens <= 64; ++tokens) {
    const int64_t got = rows({tokens, 1}, 64);
    EXPECT_GE(got, tokens);
    EXPECT_LT(got, std::max<int64_t>(2 * tokens, tokens + 8)) << "little is filled up";
    shapes.insert(got);
  }
  EXPECT_EQ(shapes.size(), 11u) << "few shapes: 1, 2, 4, 8, 16, ... 64";
}

TEST(StepSyncTest, TheHashTellsPlansAndLayoutsApart) {
  const Layout layout{.tp_size = 2, .dp_size = 2};
  auto rows = rows_of(layout);
  const int64_t idle = derive_plan(rows, layout)->hash;
  rows[1].num_tokens = 1;
  EXPECT_NE(derive_plan(rows, layout)->hash, idle);
  EXPECT_NE(first_hash(layout), first_hash({.tp_size = 2, .dp_size = 1}));
  EXPECT_NE(first_hash(layout), first_hash({.tp_size = 2, .dp_size = 2, .dp_lm_head = true}));
}

}  // namespace
}  // namespace sluice::parallel
