#include "engine/prefill_delayer.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

using parallel::kCanPrefill;
using parallel::kForcePrefill;

parallel::StepPlan exchanged(std::vector<int64_t> decoding, std::vector<int64_t> prefill) {
  parallel::StepPlan plan;
  plan.decoding = std::move(decoding);
  plan.prefill = std::move(prefill);
  return plan;
}

TEST(PrefillDelayerTest, WaitsUntilAllGroupsHaveAPrompt) {
  PrefillDelayer delayer({.enabled = true});
  EXPECT_TRUE(delayer.holds_back(exchanged({1, 1}, {0, 0}))) << "the others have not heard of it";
  EXPECT_TRUE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, 0})));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, kCanPrefill})));
}

TEST(PrefillDelayerTest, WaitsOneStepLessThanTheMostAndThenAnew) {
  PrefillDelayer delayer({.enabled = true, .max_passes = 4});
  const auto mixed = exchanged({1, 1}, {kCanPrefill, 0});
  for (int prompt = 0; prompt < 3; ++prompt) {
    for (int step = 0; step < 3; ++step) EXPECT_TRUE(delayer.holds_back(mixed)) << step;
    EXPECT_FALSE(delayer.holds_back(mixed));
  }
}

TEST(PrefillDelayerTest, NobodyWaitsForWhoDoesNotDecode) {
  PrefillDelayer delayer({.enabled = true});
  EXPECT_FALSE(delayer.holds_back(exchanged({0, 0}, {kCanPrefill, 0})));
  EXPECT_TRUE(delayer.holds_back(exchanged({3, 0}, {kCanPrefill, 0})));
}

TEST(PrefillDelayerTest, AGroupWithMuchRoomLetsAllBegin) {
  PrefillDelayer delayer({.enabled = true, .token_usage_low_watermark = 0.2});
  EXPECT_TRUE(delayer.forces(true, 0.1));
  EXPECT_FALSE(delayer.forces(true, 0.2));
  EXPECT_FALSE(delayer.forces(false, 0.1));
  EXPECT_FALSE(PrefillDelayer({.enabled = true}).forces(true, 0.0));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1}, {kCanPrefill, kCanPrefill | kForcePrefill})));
  EXPECT_FALSE(delayer.holds_back(exchanged({1, 1, 1}, {kCanPrefill, kCanPrefill | kForcePrefill, 0})));
}

}  // namespace
}  // namespace sluice::engine
