#include "routing/answer_times.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace sluice::routing {
namespace {

using namespace std::chrono_literals;

constexpr PrefillCost kCost{.per_request = 0, .per_token = 20e-6};

TEST(AnswerTimesTest, DecodingIsWhatTheQuickestAnswerTookForATokenBeyondItsPrompt) {
  AnswerTimes times;
  EXPECT_TRUE(times.empty());
  TimePoint now(1s);
  times.add({.took = 20ms + 100ms, .tokens = 1000, .output_tokens = 10}, now, kCost);
  EXPECT_NEAR(times.decode_time(kCost), 0.01, 1e-6);
  for (int i = 0; i < 1000; ++i) times.add({.took = 900ms, .tokens = 1000, .output_tokens = 10}, now += 100ms, kCost);
  EXPECT_NEAR(times.decode_time(kCost), 0.01, 1e-6) << "a queue is no decoding";
  for (int i = 0; i < 2000; ++i) times.add({.took = 320ms, .tokens = 1000, .output_tokens = 10}, now += 1s, kCost);
  EXPECT_NEAR(times.decode_time(kCost), 0.03, 1e-6) << "it has become slower";
}

TEST(AnswerTimesTest, WhatIsKnownLaterOfPromptsCorrectsWhatWasSeenBefore) {
  AnswerTimes times;
  const PrefillCost wrong{.per_request = 0, .per_token = 1.0 / 8000};
  times.add({.took = 140ms, .tokens = 2000, .output_tokens = 10}, TimePoint(1s), wrong);
  EXPECT_LT(times.decode_time(wrong), 1e-6);
  EXPECT_NEAR(times.decode_time(kCost), 0.01, 1e-6);
}

TEST(AnswerTimesTest, ACrowdIsWhatTheWorkerDoesNotWorkOnAtOnce) {
  AnswerTimes times;
  TimePoint now(1s);
  // 32 places of 500 ms: those beyond wait for them.
  const auto took = [](double n) { return from_seconds(std::max(n, 32.0) / 32 * 0.5); };
  for (int n = 1; n <= 64; ++n) {
    times.add({.took = took(n), .output_tokens = 50, .at_once = static_cast<double>(n)}, now += 10ms, kCost);
  }
  for (int i = 0; i < 200; ++i) {
    const double n = 56 + i % 16;
    times.add({.took = took(n), .output_tokens = 50, .at_once = n}, now += 10ms, kCost);
  }
  EXPECT_EQ(times.crowd(32, kCost), 0);
  EXPECT_NEAR(times.crowd(64, kCost), 0.5, 0.2);
  EXPECT_NEAR(times.crowd(80, kCost), 0.75, 0.3);
}

TEST(AnswerTimesTest, DecodingThatVariesIsNoCrowd) {
  AnswerTimes times;
  Rng rng(1);
  TimePoint now(1s);
  for (int i = 0; i < 2000; ++i) {
    const double n = 1 + static_cast<double>(rng.below(8));
    times.add({.took = from_seconds(0.1 + 0.3 * rng.uniform()), .output_tokens = 10, .at_once = n}, now += 50ms, kCost);
  }
  EXPECT_LT(times.crowd(6, kCost), 0.01);
}

}  // namespace
}  // namespace sluice::routing
