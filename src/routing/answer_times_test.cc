#include "routing/answer_times.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"

namespace sluice::routing {
namespace {

using namespace std::chrono_literals;

constexpr PrefillCost kCost{.per_request = 0, .per_token = 20e-6};

TEST(AnswerTimesTest, DecodingIsWhatTheQuickestAnswerTookForATokenBeyondItsPrompt) {
  AnswerTimes times;
  EXPECT_TRUE(times.empty());
  TimePoint now(1s);
  times.add({.took = 20ms + 100ms, .tokens = 1000, .output_tokens = 11}, now, kCost);
  EXPECT_NEAR(times.decoding(11, kCost), 0.1, 1e-6);
  times.add({.took = 2ms, .tokens = 10, .output_tokens = 1}, now, kCost);
  EXPECT_NEAR(times.decoding(11, kCost), 0.1, 1e-6) << "nothing was decoded for one token";
  for (int i = 0; i < 1000; ++i) times.add({.took = 900ms, .tokens = 1000, .output_tokens = 11}, now += 100ms, kCost);
  EXPECT_NEAR(times.decoding(11, kCost), 0.1, 1e-6) << "a queue is no decoding";
  for (int i = 0; i < 2000; ++i) times.add({.took = 320ms, .tokens = 1000, .output_tokens = 11}, now += 1s, kCost);
  EXPECT_NEAR(times.decoding(11, kCost), 0.3, 1e-6) << "it has become slower";
}

TEST(AnswerTimesTest, WhatIsKnownLaterOfPromptsCorrectsWhatWasSeenBefore) {
  AnswerTimes times;
  const PrefillCost wrong{.per_request = 0, .per_token = 1.0 / 8000};
  times.add({.took = 140ms, .tokens = 2000, .output_tokens = 11}, TimePoint(1s), wrong);
  EXPECT_LT(times.decoding(11, wrong), 1e-6);
  EXPECT_NEAR(times.decoding(11, kCost), 0.1, 1e-6);
}

// So many clients at a worker that works on 32 at once, each for 500 ms, in turn or in heaps of 32.
AnswerTimes behind_32_places(int clients, bool heaps) {
  AnswerTimes times;
  TimePoint now(1s);
  const double n = clients;
  for (int i = 0; i < 2000; ++i) {
    if (!heaps) now += from_seconds(0.5 / std::min(n, 32.0));
    if (heaps && i % std::min(clients, 32) == 0) now += 500ms;
    times.add({.took = from_seconds(i < 32 ? 0.5 : std::max(n, 32.0) / 32 * 0.5), .output_tokens = 50, .at_once = n},
              now, kCost);
  }
  return times;
}

TEST(AnswerTimesTest, ACrowdIsWhatTheWorkerDoesNotWorkOnAtOnce) {
  for (const bool heaps : {false, true}) {
    const AnswerTimes full = behind_32_places(64, heaps);
    EXPECT_EQ(full.crowd(30), 0) << heaps;
    EXPECT_NEAR(full.crowd(48), 0.25, 0.12) << heaps;
    EXPECT_NEAR(full.crowd(64), 0.5, 0.2) << heaps;
    EXPECT_NEAR(full.crowd(80), 0.75, 0.3) << heaps;
    EXPECT_EQ(behind_32_places(30, heaps).crowd(40), 0) << "nobody has waited yet";
  }
}

TEST(AnswerTimesTest, ShortAnswersAmongLongOnesDoNotHideACrowd) {
  AnswerTimes times;
  TimePoint now(1s);
  // Twelve clients at a worker that works on four at once, each for 10 s; now and then one asks for two tokens.
  for (int i = 0; i < 400; ++i) {
    const Duration waited = i < 4 ? 0s : 20s;
    times.add({.took = waited + 10s, .output_tokens = 251, .at_once = 12}, now += 2500ms, kCost);
    if (i % 10 == 9) times.add({.took = waited + 40ms, .output_tokens = 2, .at_once = 12}, now += 5ms, kCost);
  }
  EXPECT_EQ(times.crowd(4), 0);
  EXPECT_NEAR(times.crowd(12), 17, 3);
}

TEST(AnswerTimesTest, WhoIsAloneIsNoCrowdHoweverMuchDecodingVaries) {
  AnswerTimes times;
  Rng rng(2);
  TimePoint now(1s);
  for (int i = 0; i < 200; ++i) {
    times.add({.took = from_seconds(0.1 + 0.4 * rng.uniform()), .output_tokens = 11}, now += 1s, kCost);
  }
  EXPECT_EQ(times.crowd(1), 0);
}

TEST(AnswerTimesTest, DecodingThatVariesALittleIsNoCrowd) {
  AnswerTimes times;
  Rng rng(1);
  TimePoint now(1s);
  for (int i = 0; i < 2000; ++i) {
    const double n = 1 + static_cast<double>(rng.below(8));
    times.add({.took = from_seconds(0.1 + 0.05 * rng.uniform()), .output_tokens = 10, .at_once = n}, now += 50ms,
              kCost);
  }
  EXPECT_EQ(times.crowd(12), 0);
}

}  // namespace
}  // namespace sluice::routing
