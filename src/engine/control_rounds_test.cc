#include "engine/control_rounds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/fake_clock.h"

namespace sluice::engine {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::Pair;

class ControlRoundsTest : public ::testing::Test {
 protected:
  uint64_t begin(ControlKind kind, std::set<size_t> ranks, Duration at_most = seconds(30), std::string text = "") {
    ControlRequest request{.kind = kind, .text = std::move(text)};
    rounds_.begin(request, std::move(ranks), at_most,
                  [this](Result<Backend::RankAnswers> result) { heard_.push_back(std::move(result)); });
    return request.id;
  }
  void answer(size_t rank, uint64_t id, std::string message = "") {
    rounds_.take(rank, {.id = id, .ok = true, .message = std::move(message)});
  }
  void refuse(size_t rank, uint64_t id, std::string message) {
    rounds_.take(rank, {.id = id, .ok = false, .message = std::move(message)});
  }

  sluice::testing::FakeClock clock_;
  ControlRounds rounds_{clock_};
  std::vector<Result<Backend::RankAnswers>> heard_;
};

TEST_F(ControlRoundsTest, WhoAskedHearsOnceWhenTheLastHasAnswered) {
  const uint64_t id = begin(ControlKind::kRecordExperts, {0, 2});
  EXPECT_EQ(rounds_.asked(2, id), ControlKind::kRecordExperts);
  EXPECT_EQ(rounds_.asked(1, id), std::nullopt);
  EXPECT_EQ(rounds_.asked(2, id + 1), std::nullopt);
  answer(2, id, "two");
  answer(2, id, "again");
  answer(1, id, "was not asked");
  EXPECT_TRUE(heard_.empty());
  EXPECT_TRUE(rounds_.waits_for(0));
  EXPECT_FALSE(rounds_.waits_for(2));
  answer(0, id);
  ASSERT_EQ(heard_.size(), 1u);
  EXPECT_THAT(*heard_[0], ElementsAre(Pair(2, "two")));
  answer(0, id, "late");
  EXPECT_EQ(heard_.size(), 1u);
}

TEST_F(ControlRoundsTest, WithoutRanksItIsDone) {
  begin(ControlKind::kFlushCache, {});
  ASSERT_EQ(heard_.size(), 1u);
  EXPECT_TRUE(heard_[0].ok());
}

TEST_F(ControlRoundsTest, RefusalsAreNamedRankByRank) {
  const uint64_t id = begin(ControlKind::kStartProfile, {0, 1, 2});
  refuse(1, id, "no space");
  answer(0, id);
  refuse(2, id, "it runs already");
  ASSERT_EQ(heard_.size(), 1u);
  EXPECT_EQ(heard_[0].error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(heard_[0].error().message, "rank 1: no space; rank 2: it runs already");
}

TEST_F(ControlRoundsTest, TheTimeOfEachIsItsOwn) {
  EXPECT_EQ(rounds_.due(), std::nullopt);
  const uint64_t longer = begin(ControlKind::kLoadWeights, {0, 3}, seconds(600));
  begin(ControlKind::kFlushCache, {0, 3}, seconds(30));
  EXPECT_EQ(rounds_.due(), clock_.now() + seconds(30));
  clock_.advance(seconds(30) - Duration{1});
  rounds_.expire();
  EXPECT_TRUE(heard_.empty());
  clock_.advance(Duration{1});
  rounds_.expire();
  ASSERT_EQ(heard_.size(), 1u);
  EXPECT_EQ(heard_[0].error().code, ErrorCode::kTimeout);
  EXPECT_EQ(heard_[0].error().message, "no answer within 30 s from rank 0, 3");
  EXPECT_EQ(rounds_.asked(0, longer), ControlKind::kLoadWeights);
  EXPECT_EQ(rounds_.due(), clock_.now() + seconds(570));
}

TEST_F(ControlRoundsTest, ARankThatEndsIsNotWaitedFor) {
  const uint64_t both = begin(ControlKind::kFlushCache, {0, 1, 2});
  begin(ControlKind::kFlushCache, {1, 2});
  rounds_.drop({1, 2});
  ASSERT_EQ(heard_.size(), 1u) << "nobody is left of the second";
  EXPECT_TRUE(heard_[0].ok());
  answer(0, both);
  ASSERT_EQ(heard_.size(), 2u);
  EXPECT_TRUE(heard_[1].ok());
}

TEST_F(ControlRoundsTest, AtTheEndAllHear) {
  begin(ControlKind::kFlushCache, {0});
  begin(ControlKind::kStopProfile, {0});
  rounds_.cancel_all("the end");
  ASSERT_EQ(heard_.size(), 2u);
  for (const auto& each : heard_) EXPECT_EQ(each.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(rounds_.due(), std::nullopt);
}

TEST_F(ControlRoundsTest, ARankThatStartsTakesOverAPause) {
  for (const auto pause : {ControlKind::kPauseAbort, ControlKind::kPauseRetract, ControlKind::kPauseInPlace}) {
    begin(pause, {0});
    EXPECT_TRUE(rounds_.paused()) << "from when it is asked, not from when it is done";
    begin(ControlKind::kFlushCache, {0});
    EXPECT_TRUE(rounds_.paused());
    begin(ControlKind::kContinue, {0});
    EXPECT_FALSE(rounds_.paused());
  }
}

// One that starts while others load must not come up with what they are leaving; if they refuse, they have what they
// had.
TEST_F(ControlRoundsTest, ARankThatStartsLoadsWhatTheOthersHaveOrAreLoading) {
  EXPECT_EQ(rounds_.model_file(), "");
  const uint64_t good = begin(ControlKind::kLoadWeights, {0, 1}, seconds(600), "/m/2");
  EXPECT_EQ(rounds_.model_file(), "/m/2");
  answer(0, good);
  answer(1, good);
  EXPECT_EQ(rounds_.model_file(), "/m/2");
  const uint64_t bad = begin(ControlKind::kLoadWeights, {0, 1}, seconds(600), "/m/3");
  EXPECT_EQ(rounds_.model_file(), "/m/3");
  answer(0, bad);
  refuse(1, bad, "another model");
  EXPECT_EQ(rounds_.model_file(), "/m/2");
  EXPECT_EQ(heard_.back().error().code, ErrorCode::kUnavailable) << "some have them";
}

TEST_F(ControlRoundsTest, WeightsThatNobodyHasLoadedAreNotTheOnesThatHold) {
  begin(ControlKind::kLoadWeights, {}, seconds(600), "/m/2");
  const uint64_t refused = begin(ControlKind::kLoadWeights, {0, 1}, seconds(600), "/m/3");
  refuse(0, refused, "another model");
  refuse(1, refused, "another model");
  begin(ControlKind::kLoadWeights, {0, 1}, seconds(600), "/m/4");
  rounds_.drop({0, 1});
  ASSERT_EQ(heard_.size(), 3u);
  for (const auto& each : heard_) EXPECT_EQ(each.error().code, ErrorCode::kRefused);
  EXPECT_EQ(rounds_.model_file(), "");
}

}  // namespace
}  // namespace sluice::engine
