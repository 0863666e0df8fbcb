#include "engine/prefill_delayer.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

using parallel::kCanPrefill;
using parallel::kForcePrefill;

const TimePoint kStart{std::chrono::seconds(100)};

parallel::StepPlan exchanged(std::vector<int64_t> decoding, std::vector<int64_t> prefill) {
  parallel::StepPlan plan;
  plan.decoding = std::move(decoding);
  plan.prefill = std::move(prefill);
  return plan;
}

TEST(PrefillDelayerTest, WaitsUntilAllGroupsHaveAPrompt) {
  PrefillDelayer delayer({.enabled = true});
  EXPECT_TRUE(delayer.holds_back(exchanged({1, 1}, {0, 0}), kStart)) << "the others have not heard of it";
  EXPECT_TRUE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, 0}), kStart));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, kCanPrefill}), kStart));
}

TEST(PrefillDelayerTest, WaitsOneStepLessThanTheMostAndThenAnew) {
  PrefillDelayer delayer({.enabled = true, .max_passes = 4});
  const auto mixed = exchanged({1, 1}, {kCanPrefill, 0});
  for (int prompt = 0; prompt < 3; ++prompt) {
    for (int step = 0; step < 3; ++step) EXPECT_TRUE(delayer.holds_back(mixed, kStart)) << step;
    EXPECT_FALSE(delayer.holds_back(mixed, kStart));
  }
}

TEST(PrefillDelayerTest, NobodyWaitsForWhoDoesNotDecode) {
  PrefillDelayer delayer({.enabled = true});
  EXPECT_FALSE(delayer.holds_back(exchanged({0, 0}, {kCanPrefill, 0}), kStart));
  EXPECT_TRUE(delayer.holds_back(exchanged({3, 0}, {kCanPrefill, 0}), kStart));
}

TEST(PrefillDelayerTest, AGroupWithMuchRoomLetsAllBegin) {
  PrefillDelayer delayer({.enabled = true, .token_usage_low_watermark = 0.2});
  EXPECT_TRUE(delayer.forces(true, 0.1));
  EXPECT_FALSE(delayer.forces(true, 0.2));
  EXPECT_FALSE(delayer.forces(false, 0.1));
  EXPECT_FALSE(PrefillDelayer({.enabled = true}).forces(true, 0.0));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, kCanPrefill | kForcePrefill}), kStart));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1, 1}, {kCanPrefill, kCanPrefill | kForcePrefill, 0}), kStart));
}

TEST(PrefillDelayerTest, CountsWhatItDecidesAndHowLongPromptsWait) {
  PrefillDelayer delayer({.enabled = true, .max_passes = 3});
  const auto mixed = exchanged({1, 1}, {kCanPrefill, 0}), all = exchanged({1, 1}, {kCanPrefill, kCanPrefill});
  EXPECT_TRUE(delayer.holds_back(mixed, kStart));
  EXPECT_TRUE(delayer.holds_back(mixed, kStart + std::chrono::seconds(1)));
  EXPECT_FALSE(delayer.holds_back(mixed, kStart + std::chrono::seconds(3)));
  EXPECT_FALSE(delayer.holds_back(all, kStart));
  EXPECT_TRUE(delayer.holds_back(mixed, kStart));
  EXPECT_FALSE(delayer.holds_back(all, kStart));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, kForcePrefill}), kStart));
  EXPECT_FALSE(delayer.holds_back(exchanged({0, 0}, {kCanPrefill, 0}), kStart));
  const PrefillDelays& delays = delayer.delays();
  const auto count = [&](DelayOutcome outcome) { return delays.outcomes[static_cast<size_t>(outcome)]; };
  EXPECT_EQ(count(DelayOutcome::kHeldBack), 3u);
  EXPECT_EQ(count(DelayOutcome::kLongEnough), 1u);
  EXPECT_EQ(count(DelayOutcome::kAllCould), 1u);
  EXPECT_EQ(count(DelayOutcome::kAllCouldAtLast), 1u);
  EXPECT_EQ(count(DelayOutcome::kMuchRoom), 1u);
  EXPECT_EQ(count(DelayOutcome::kNobodyDecodes), 1u);
  EXPECT_EQ(delays.passes.counts[0], 3u);
  EXPECT_EQ(delays.passes.counts[1], 2u);
  EXPECT_EQ(delays.passes.sums[1], 3.0);
  EXPECT_EQ(delays.seconds.counts[3], 1u) << "three seconds";
  EXPECT_EQ(delays.seconds.sums[3], 3.0);
}

}  // namespace
}  // namespace sluice::engine
