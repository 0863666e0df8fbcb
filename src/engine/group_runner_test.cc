// A model divided among ranks as the scheduler sees it. Ranks are threads; what they compute is recorded, not computed.
#include "engine/group_runner.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <thread>

#include "parallel/inproc.h"

namespace sluice::engine {
namespace {

using models::StepBatch;
using Next = parallel::StepMember::Next;

// What a step was, and the slots of its sequences.
struct Seen {
  std::vector<int32_t> tokens, positions, slots, logit_rows, starts, lens;
  std::map<int32_t, std::vector<int32_t>> table;  // by row, up to the sequence's length
  std::vector<int64_t> group_tokens, first_half;
  int64_t padded_rows = 0;
  bool operator==(const Seen&) const = default;
};

class RecordingRunner final : public models::Runner {
 public:
  const models::ModelInfo& info() const override { return info_; }
  Result<void> allocate_kv(const models::KvPlan& plan) override {
    width_ = plan.table_width;
    table_.resize(static_cast<size_t>(plan.table_rows * plan.table_width));
    return {};
  }
  std::span<int32_t> slot_table() override { return table_; }
  Result<std::span<const float>> forward(const StepBatch& batch) override {
    const auto copy = [](auto values) { return std::vector(values.begin(), values.end()); };
    Seen step{copy(batch.token_ids),
              copy(batch.positions),
              copy(batch.kv_slots),
              copy(batch.logit_rows),
              copy(batch.query_start),
              copy(batch.seq_lens),
              {},
              copy(batch.group_tokens),
              copy(batch.first_half),
              batch.padded_rows};
    for (size_t i = 0; i < batch.seq_lens.size(); ++i) {
      const auto row = table_.begin() + batch.table_rows[i] * width_;
      step.table[batch.table_rows[i]] = {row, row + batch.seq_lens[i]};
    }
    seen.push_back(step);
    return std::span<const float>();
  }

  bool can_split() const override { return splits; }

  std::vector<Seen> seen;
  bool splits = true;

 private:
  models::ModelInfo info_;
  int64_t width_ = 0;
  std::vector<int32_t> table_;
};

struct Rank {
  parallel::Groups groups;
  RecordingRunner* inner = nullptr;
  std::unique_ptr<GroupRunner> runner;
};

class GroupRunnerTest : public testing::Test {
 protected:
  void make(const parallel::Layout& layout, std::optional<double> split_threshold = std::nullopt) {
    world_ = parallel::make_inproc_group(static_cast<int>(layout.tp_size));
    ranks_.resize(world_.size());
    on_each([&](size_t i) {
      parallel::Layout own = layout;
      own.tp_rank = static_cast<int64_t>(i);
      ranks_[i].groups = parallel::make_groups(*world_[i], own).value();
      auto inner = std::make_unique<RecordingRunner>();
      ranks_[i].inner = inner.get();
      ranks_[i].runner = std::make_unique<GroupRunner>(std::move(inner), ranks_[i].groups, nullptr, split_threshold);
      ASSERT_TRUE(ranks_[i].runner->allocate_kv({.slots = 100, .table_rows = 4, .table_width = 16}).ok());
      ranks_[i].runner->member().heard();
    });
  }
  void on_each(const std::function<void(size_t)>& body) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < world_.size(); ++i) threads.emplace_back(body, i);
    for (std::thread& thread : threads) thread.join();
  }
  const std::vector<Seen>& seen(size_t i) const { return ranks_[i].inner->seen; }

  std::vector<std::unique_ptr<parallel::Communicator>> world_;
  std::vector<Rank> ranks_;
};

// Sequence of table row 2 whose first slots are `slots`, of which the last `fresh` are new.
struct Batch {
  Batch(std::vector<int32_t> slots, int32_t fresh) : slots_(std::move(slots)) {
    const auto length = static_cast<int32_t>(slots_.size());
    for (int32_t i = length - fresh; i < length; ++i) {
      tokens_.push_back(100 + i);
      positions_.push_back(i);
    }
    starts_ = {0, fresh};
    lens_ = {length};
    wanted_ = {fresh - 1};
  }
  StepBatch view(std::span<int32_t> table) const {
    std::copy(slots_.begin(), slots_.end(), table.begin() + 2 * 16);
    return {.token_ids = tokens_,
            .positions = positions_,
            .kv_slots = std::span(slots_).last(tokens_.size()),
            .query_start = starts_,
            .seq_lens = lens_,
            .table_rows = kRows,
            .logit_rows = wanted_};
  }

 private:
  static constexpr int32_t kRows[] = {2};
  std::vector<int32_t> slots_, tokens_, positions_, starts_, lens_, wanted_;
};

TEST_F(GroupRunnerTest, TheOthersOfAGroupComputeWhatItsLeaderPlans) {
  make({.tp_size = 3});
  const std::vector<Batch> steps{{{5, 6, 7}, 3},
                                 {{5, 6, 7, 8}, 1},
                                 {{5, 20, 7, 8, 9}, 1},  // a slot of its past was exchanged for another's
                                 {{5, 30}, 1}};          // another sequence, with a cached prefix
  on_each([&](size_t i) {
    for (const Batch& step : steps) {
      GroupRunner& runner = *ranks_[i].runner;
      if (i == 0) {
        ASSERT_TRUE(runner.forward(step.view(runner.slot_table())).ok());
      } else {
        ASSERT_TRUE(runner.join().value());
      }
    }
  });
  ASSERT_EQ(seen(0).size(), 4u);
  EXPECT_EQ(seen(0)[2].table.at(2), (std::vector<int32_t>{5, 20, 7, 8, 9}));
  EXPECT_EQ(seen(1), seen(0));
  EXPECT_EQ(seen(2), seen(0));
}

TEST_F(GroupRunnerTest, GroupsWithoutWorkJoinWithNothing) {
  make({.tp_size = 4, .dp_size = 2});
  const Batch step({5, 6, 7}, 3);
  on_each([&](size_t i) {
    GroupRunner& runner = *ranks_[i].runner;
    if (i == 2) {
      ASSERT_TRUE(runner.forward(step.view(runner.slot_table())).ok());
    } else {
      ASSERT_TRUE(runner.join().value());
    }
  });
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_EQ(seen(i).size(), 1u);
    EXPECT_EQ(seen(i)[0].group_tokens, (std::vector<int64_t>{0, 3}));
    EXPECT_EQ(seen(i)[0].tokens.size(), i < 2 ? 0u : 3u);
  }
  EXPECT_EQ(seen(3), seen(2));
}

TEST_F(GroupRunnerTest, BatchesAreSplitWhereAllCanAndTheOthersOfAGroupSplitThemAlike) {
  make({.tp_size = 4, .dp_size = 2}, /*split_threshold=*/0.48);
  const Batch prompt{{5, 6, 7, 8, 9}, 5}, token{{5, 6, 7, 8, 9, 10}, 1};
  on_each([&](size_t i) {
    for (const Batch* batch : {&prompt, &token}) {
      GroupRunner& runner = *ranks_[i].runner;
      if (i == 0) {
        ASSERT_TRUE(runner.forward(batch->view(runner.slot_table())).ok());
      } else {
        ASSERT_TRUE(runner.join().value());
      }
    }
  });
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(seen(i)[0].first_half, (std::vector<int64_t>{2, 0})) << i;
    EXPECT_TRUE(seen(i)[1].first_half.empty()) << "one token";
    EXPECT_EQ(ranks_[i].runner->split_steps(), 1u);
  }
}

TEST_F(GroupRunnerTest, StepsWithoutPromptsHaveAFixedShapeWhereAsked) {
  make({.tp_size = 4, .dp_size = 2});
  const Batch prompt{{5, 6, 7}, 3}, token{{5, 6, 7, 8}, 1};
  on_each([&](size_t i) {
    GroupRunner& runner = *ranks_[i].runner;
    runner.fill_groups_up(4);
    for (const Batch* batch : {&prompt, &token}) {
      if (i == 2) {
        ASSERT_TRUE(runner.forward(batch->view(runner.slot_table())).ok());
      } else {
        ASSERT_TRUE(runner.join().value());
      }
    }
  });
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(seen(i)[0].padded_rows, 0) << "somebody prefills";
    EXPECT_EQ(seen(i)[1].padded_rows, 1);
    EXPECT_EQ(ranks_[i].runner->fixed_steps(), 1u);
  }
}

// As where the experts of each token are recorded.
TEST_F(GroupRunnerTest, StepsThatTheModelComputesWholeAreNotCountedAsSplit) {
  make({.tp_size = 2, .dp_size = 2}, /*split_threshold=*/0.48);
  for (const Rank& rank : ranks_) rank.inner->splits = false;
  const Batch prompt{{5, 6, 7, 8, 9}, 5};
  on_each([&](size_t i) { ASSERT_TRUE(ranks_[i].runner->forward(prompt.view(ranks_[i].runner->slot_table())).ok()); });
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(seen(i)[0].first_half.empty());
    EXPECT_EQ(ranks_[i].runner->split_steps(), 0u);
  }
}

TEST_F(GroupRunnerTest, AllParkOnceTheSameWorkHasReachedAll) {
  make({.tp_size = 2, .dp_size = 2});
  on_each([&](size_t i) {
    GroupRunner& runner = *ranks_[i].runner;
    parallel::StepMember& member = runner.member();
    EXPECT_FALSE(runner.join().value());
    EXPECT_EQ(member.next(), Next::kSleep);
    member.heard();
    if (i == 0) member.heard_of(1);
    EXPECT_FALSE(runner.join().value());
    EXPECT_EQ(member.next(), Next::kAgain) << "work is on its way to rank 1";
    if (i == 1) member.heard_of(1);
    EXPECT_FALSE(runner.join().value());
    EXPECT_EQ(member.next(), Next::kSleep);
    EXPECT_TRUE(seen(i).empty());
  });
}

TEST_F(GroupRunnerTest, EachGroupHearsWhatTheOthersAreUpTo) {
  make({.tp_size = 4, .dp_size = 2});
  const Batch prompt({5, 6, 7}, 3), decode({5, 6, 7, 8}, 1);
  on_each([&](size_t i) {
    GroupRunner& runner = *ranks_[i].runner;
    const auto step = [&](const Batch* batch, const GroupRunner::Outlook& outlook) {
      runner.announce(outlook);
      if (i == 0 && batch) {
        ASSERT_TRUE(runner.forward(batch->view(runner.slot_table())).ok());
      } else {
        ASSERT_TRUE(runner.join().ok());
      }
    };
    step(&prompt, {.step = {.decoding = i == 0 ? 2 : 0, .context = i == 0 ? 9 : 0, .position = 3, .prompt_reads = 5},
                   .can_prefill = i == 0});
    EXPECT_EQ(runner.others().decoding, i < 2 ? 0 : 2);
    EXPECT_EQ(runner.others().context, i < 2 ? 0 : 9);
    EXPECT_EQ(runner.others().with_prompts, i < 2 ? 0 : 1);
    EXPECT_EQ(runner.others().expect_prompts, i < 2);
    EXPECT_EQ(runner.others().position, 3);
    EXPECT_EQ(runner.last_shape().prompt_tokens, 3);
    EXPECT_EQ(runner.last_shape().prompt_reads, 5);
    EXPECT_EQ(runner.last_plan().prefill, (std::vector<int64_t>{parallel::kCanPrefill, 0}));
    step(&decode, {.step = {.decoding = i == 0 ? 1 : 0}, .force_prefill = i == 2});
    EXPECT_EQ(runner.last_shape().decoding, 1);
    EXPECT_EQ(runner.last_shape().prompt_tokens, 0);
    EXPECT_EQ(runner.last_plan().prefill, (std::vector<int64_t>{0, parallel::kForcePrefill}));
    // What is said holds for one row.
    EXPECT_FALSE(runner.join().value());
    EXPECT_EQ(runner.member().next(), Next::kSleep);
    EXPECT_EQ(runner.others().decoding, 0);
    runner.member().heard();
    step(nullptr, {.more_to_come = i == 2});
    EXPECT_FALSE(runner.last_plan().park);
  });
}

// Each rank gets the rows of three others, and a follower its leader's batch, before a step; here nothing else is sent.
TEST_F(GroupRunnerTest, BytesOnTheWireAreCountedForEachAttentionGroup) {
  make({.tp_size = 4, .dp_size = 2});
  const Batch step({5, 6, 7}, 3);
  uint64_t split = 0;  // what making the groups has sent to each rank
  on_each([&](size_t i) {
    GroupRunner& runner = *ranks_[i].runner;
    if (i == 0) split = world_[0]->received_bytes();
    if (i == 2) {
      ASSERT_TRUE(runner.forward(step.view(runner.slot_table())).ok());
    } else {
      ASSERT_TRUE(runner.join().value());
    }
    ASSERT_FALSE(runner.join().value());
    ASSERT_EQ(runner.member().next(), Next::kSleep);
    EXPECT_EQ(runner.steps(), 1u);
  });
  constexpr uint64_t kRow = sizeof(parallel::StepRow);
  // [1], [0], 3 ids, positions and slots, 1 wanted, 2 starts, 1 length, 1 row, 1 first and 3 slots of the table.
  constexpr uint64_t kBatch = (1 + 1 + 3 * 3 + 1 + 2 + 1 + 1 + 1 + 3) * 4;
  EXPECT_EQ(ranks_[0].runner->wire_bytes(), 2 * (split + 3 * kRow));
  EXPECT_EQ(ranks_[3].runner->wire_bytes(), 2 * (split + 3 * kRow) + kBatch);
}

TEST_F(GroupRunnerTest, AGroupThatFailedFailsItsSteps) {
  make({.tp_size = 2});
  world_[1]->abort("rank 1 has ended: killed");
  const auto joined = ranks_[0].runner->join();
  ASSERT_FALSE(joined.ok());
  EXPECT_NE(joined.error().message.find("rank 1 has ended: killed"), std::string::npos) << joined.error().message;
  EXPECT_EQ(ranks_[0].runner->member().next(), Next::kEnd);
}

TEST_F(GroupRunnerTest, RecordedStepsHaveTheSameNumbersOnAllRanksAndNoneWhereNobodyHasWork) {
  make({.tp_size = 2, .dp_size = 2});
  std::vector<std::vector<parallel::RecordedStep>> steps(2);
  on_each([&](size_t i) {
    GroupRunner& runner = *ranks_[i].runner;
    runner.phase_clock().start(100);
    ASSERT_TRUE(runner.join().ok());
    runner.member().heard();
    const Batch batch({5, 6, 7}, 3);
    if (i == 0) {
      ASSERT_TRUE(runner.forward(batch.view(runner.slot_table())).ok());
    } else {
      ASSERT_TRUE(runner.join().ok());
    }
    ASSERT_TRUE(runner.join().ok());
    steps[i] = runner.phase_clock().stop();
  });
  for (const auto& of_rank : steps) {
    ASSERT_EQ(of_rank.size(), 1u);
    EXPECT_EQ(of_rank[0].exchange, 2);
    EXPECT_TRUE(of_rank[0].extend);
    EXPECT_LE(of_rank[0].arrived, of_rank[0].left);
    EXPECT_LE(of_rank[0].left, of_rank[0].ended);
  }
  EXPECT_EQ(steps[0][0].tokens, 3);
  EXPECT_EQ(steps[1][0].tokens, 0);
}

}  // namespace
}  // namespace sluice::engine
