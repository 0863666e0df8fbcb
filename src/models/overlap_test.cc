// A step in two halves of which one rank is missing, or throws.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <future>
#include <latch>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "models/batch_split.h"
#include "models/model_fixture.h"
#include "parallel/group_fixture.h"
#include "parallel/inproc.h"

namespace sluice::models {
namespace {

using ::testing::HasSubstr;

constexpr parallel::Layout kLayout{.tp_size = 2,
                                   .dp_size = 2,
                                   .ep_size = 2,
                                   .a2a = parallel::MoeAllToAll::kDeepEp,
                                   .dense_data_parallel = true,
                                   .dp_lm_head = true};

parallel::Layout layout_of(size_t rank) {
  parallel::Layout layout = kLayout;
  layout.tp_rank = static_cast<int64_t>(rank);
  return layout;
}

Result<std::unique_ptr<Runner>> load(const parallel::Groups& groups, parallel::Overlap* overlap) {
  return load_runner({.model_path = folder_of("tiny-deepseek-v3"),
                      .dtype = "float32",
                      .max_step_tokens = 16,
                      .max_step_seqs = 8,
                      .groups = &groups,
                      .overlap = overlap});
}

TEST(OverlappedStepTest, FailsWithTheNameOfTheRankThatIsMissingAndLeavesNothingRunning) {
  auto world = parallel::make_inproc_group(2, {.silence_limit = std::chrono::seconds(2)});
  std::promise<void> failed;
  const auto rank = [&](size_t i) {
    const parallel::Layout layout = layout_of(i);
    const auto groups = parallel::make_groups(*world[i], layout);
    const auto overlap = parallel::Overlap::make(*world[i], layout);
    ASSERT_TRUE(groups.ok() && overlap.ok());
    const auto runner = load(*groups, overlap->get());
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    if (i == 1) {
      EXPECT_EQ(failed.get_future().wait_for(std::chrono::minutes(1)), std::future_status::ready);
      return;
    }
    const Steps steps(**runner);
    const StepArrays arrays({{.row = 0, .ids = {1, 2, 3, 4, 5, 6}}});
    const std::vector<int64_t> tokens{6, 0}, first_half{3, 0};
    StepBatch batch = arrays.view();
    batch.group_tokens = batch.group_logits = tokens;
    batch.first_half = first_half;
    const auto logits = (*runner)->forward(batch);
    failed.set_value();
    ASSERT_FALSE(logits.ok());
    EXPECT_THAT(logits.error().message, HasSubstr("rank 1"));
    EXPECT_THAT(logits.error().message, HasSubstr("half"));
    EXPECT_FALSE((*runner)->forward(batch).ok()) << "a group that failed stays so";
  };
  std::thread other([&] { rank(1); });
  rank(0);
  other.join();
}

// Throws in one of the calls of a half, counted from when the step begins.
class ThrowingCommunicator final : public parallel::Communicator {
 public:
  ThrowingCommunicator(std::unique_ptr<Communicator> inner, std::string_view half, std::shared_ptr<int> left)
      : Communicator(inner->name(), inner->rank(), {inner->world_ranks().begin(), inner->world_ranks().end()}),
        inner_(std::move(inner)),
        half_(half),
        left_(std::move(left)) {}

  void progress(const parallel::Progress& progress) override { inner_->progress(progress); }
  parallel::Progress last_progress(int rank) const override { return inner_->last_progress(rank); }
  void abort(std::string_view reason) override { inner_->abort(reason); }
  std::optional<Error> failure() const override { return inner_->failure(); }
  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override { return inner_->common_memory(bytes); }
  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    SLUICE_TRY(auto inner, inner_->subgroup(members, index, name));
    const bool meant = half_.empty() || half_ == name;
    const bool other = !half_.empty() && name.ends_with("half") && half_ != name;
    if (!inner || other) return inner;
    return std::unique_ptr<Communicator>(
        std::make_unique<ThrowingCommunicator>(std::move(inner), meant ? "" : half_, left_));
  }
  Result<void> run(const parallel::Collective& call) override {
    if (half_.empty() && --*left_ == 0) throw std::bad_alloc();
    return inner_->run(call);
  }

 private:
  const std::unique_ptr<Communicator> inner_;
  const std::string half_;  // that throws; empty: it is part of that
  const std::shared_ptr<int> left_;
};

// How the step ended on both ranks, if the first one throws in the number-th call of a half.
std::array<std::string, 2> step_that_throws(std::string_view half, int number) {
  auto world = parallel::make_inproc_group(2, {.silence_limit = std::chrono::hours(1)});
  const auto left = std::make_shared<int>(0);
  world[0] = std::make_unique<ThrowingCommunicator>(std::move(world[0]), half, left);
  std::array<std::string, 2> ends;
  std::latch loaded(2);  // what is thrown fails the world, also for one that is about to leave the last call of loading
  parallel::on_each(world, [&](parallel::Communicator& comm) {
    const auto i = static_cast<size_t>(comm.rank());
    const auto groups = parallel::make_groups(comm, layout_of(i));
    const auto overlap = parallel::Overlap::make(comm, layout_of(i));
    ASSERT_TRUE(groups.ok() && overlap.ok());
    const auto runner = load(*groups, overlap->get());
    loaded.arrive_and_wait();
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    const Steps steps(**runner);
    const StepArrays arrays({{.row = 0, .ids = {1, 2, 3, 4, 5, 6}}});  // cut, so that its second part waits
    const std::vector<int64_t> tokens{6, 6}, first_half{3, 3};
    StepBatch batch = arrays.view();
    batch.group_tokens = batch.group_logits = tokens;
    batch.first_half = first_half;
    if (i == 0) *left = number;
    try {
      const auto logits = (*runner)->forward(batch);
      if (!logits.ok()) ends[i] = logits.error().message;
    } catch (const std::bad_alloc&) {
      ends[i] = "thrown";
    }
  });
  return ends;
}

TEST(OverlappedStepTest, R22WhateverCallOfAHalfThrowsBothRanksEndWithTheCause) {
  for (const std::string_view half : {"first half", "second half"}) {
    int number = 1;
    for (;; ++number) {
      SCOPED_TRACE(fmt::format("call {} of the {}", number, half));
      const auto [thrower, other] = step_that_throws(half, number);
      if (thrower.empty() && other.empty()) break;  // a half has fewer calls
      ASSERT_LT(number, 1000) << "calls of one step";
      // What the second thread throws is an error of its own half, or of the other one's calls.
      if (half == "first half") {
        EXPECT_EQ(thrower, "thrown");
      } else {
        EXPECT_TRUE(thrower.ends_with("std::bad_alloc")) << thrower;
      }
      EXPECT_EQ(other, "rank 0: std::bad_alloc");
    }
    EXPECT_GT(number, 8) << "calls";
  }
}

// A rank's calls; those in which rows travel come back only after what the rank computes meanwhile.
class WatchedCommunicator final : public parallel::Communicator {
 public:
  struct Watch {
    parallel::Overlap* overlap = nullptr;  // null: calls are as they are
    int rows = 0;                          // calls in which rows travel: to the experts and back in turn
    Duration before{};
    // Time in which something was computed during calls that send rows to the experts, back, and others.
    Duration dispatched{}, combined{}, others{};
    Duration* last = &others;  // the last call's
  };

  WatchedCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Watch> watch)
      : Communicator(inner->name(), inner->rank(), {inner->world_ranks().begin(), inner->world_ranks().end()}),
        inner_(std::move(inner)),
        watch_(std::move(watch)) {}

  void progress(const parallel::Progress& progress) override { inner_->progress(progress); }
  parallel::Progress last_progress(int rank) const override { return inner_->last_progress(rank); }
  void abort(std::string_view reason) override { inner_->abort(reason); }
  std::optional<Error> failure() const override { return inner_->failure(); }
  Result<std::shared_ptr<std::byte>> common_memory(size_t bytes) override { return inner_->common_memory(bytes); }
  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> members, int index,
                                                 std::string_view name) override {
    SLUICE_TRY(auto inner, inner_->subgroup(members, index, name));
    if (!inner) return inner;
    return std::unique_ptr<Communicator>(std::make_unique<WatchedCommunicator>(std::move(inner), watch_));
  }
  Result<void> run(const parallel::Collective& call) override {
    if (watch_->overlap == nullptr) return inner_->run(call);
    parallel::Turns& turns = watch_->overlap->turns();
    const Duration covered = turns.times().covered;  // up to the last call
    *watch_->last += covered - std::exchange(watch_->before, covered);
    const bool rows = call.kind == parallel::Kind::kAllToAll && call.element == parallel::Element::kF32;
    const bool back = watch_->rows % 2 == 1;
    watch_->last = !rows ? &watch_->others : back ? &watch_->combined : &watch_->dispatched;
    watch_->rows += rows;
    if (rows) {
      turns.take();  // behind the other thread, if it computes
      turns.give();
    }
    return inner_->run(call);
  }

 private:
  const std::unique_ptr<Communicator> inner_;
  const std::shared_ptr<Watch> watch_;
};

TEST(SharedExpertsTest, AreComputedWhileRowsAreOnTheirWayAndWhileTheyComeBack) {
  std::array<std::vector<float>, 2> logits;
  for (const bool overlaps : {false, true}) {
    auto world = parallel::make_inproc_group(2);
    const auto watch = std::make_shared<WatchedCommunicator::Watch>();
    world[0] = std::make_unique<WatchedCommunicator>(std::move(world[0]), watch);
    parallel::on_each(world, [&](parallel::Communicator& comm) {
      const auto i = static_cast<size_t>(comm.rank());
      const auto groups = parallel::make_groups(comm, layout_of(i));
      const auto overlap = parallel::Overlap::make(comm, layout_of(i), /*halves=*/1);
      ASSERT_TRUE(groups.ok() && overlap.ok());
      const auto runner = load(*groups, overlaps ? overlap->get() : nullptr);
      ASSERT_TRUE(runner.ok()) << runner.error().message;
      EXPECT_FALSE((*runner)->can_split());
      const Steps steps(**runner);
      const StepArrays arrays({{.row = 0, .ids = {1, 2, 3, 4, 5, 6}}});
      const std::vector<int64_t> tokens{6, 6}, first_half{3, 3};
      StepBatch batch = arrays.view();
      batch.group_tokens = batch.group_logits = tokens;
      batch.first_half = first_half;  // of no account
      if (i == 0 && overlaps) watch->overlap = overlap->get();
      const auto got = (*runner)->forward(batch);
      if (i == 0) watch->overlap = nullptr;
      ASSERT_TRUE(got.ok()) << got.error().message;
      if (i == 0) logits[overlaps].assign(got->begin(), got->end());
    });
    EXPECT_EQ(watch->dispatched > Duration{}, overlaps);
    EXPECT_EQ(watch->combined > Duration{}, overlaps);
    EXPECT_EQ(watch->others, Duration{}) << "what could hide rows was spent on who sends how many";
  }
  EXPECT_FALSE(logits[0].empty());
  EXPECT_EQ(logits[0], logits[1]);
}

}  // namespace
}  // namespace sluice::models
