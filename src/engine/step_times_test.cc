#include "engine/step_times.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace sluice::engine {
namespace {

// A machine: a step costs what its requests cost, what its prompt tokens cost, and something for having any.
struct Machine {
  double seconds(int64_t decoding, int64_t tokens) const {
    return (decoding > 0 ? 0.010 + 0.0005 * static_cast<double>(decoding) : 0) +
           (tokens > 0 ? overhead + per_token * static_cast<double>(tokens) : 0);
  }
  double overhead = 0.001;
  double per_token = 0.0005;
};

// As the scheduler does, with prompts without end.
TEST(StepTimesTest, MixedStepsFillTheGapAndStayInIt) {
  for (const double gap : {1.5, 3.0, 10.0}) {
    const Machine machine;
    StepTimes times;
    times.record(0, 512, machine.seconds(0, 512));
    Rng rng(/*seed=*/3);
    int64_t decoding = 1;
    int64_t late = 0, tokens = 0, could = 0, decode_steps = 0;
    constexpr int kSteps = 2000;
    for (int i = 0; i < kSteps; ++i) {
      if (rng.below(10) == 0) decoding = 1 + static_cast<int64_t>(rng.below(64));
      if (times.wants_decode_step(decoding)) {
        ++decode_steps;
        times.record(decoding, 0, machine.seconds(decoding, 0));
        continue;
      }
      const int64_t n = times.prompt_tokens(decoding, gap);
      const double took = machine.seconds(decoding, n);
      late += took > gap * machine.seconds(decoding, 0);
      tokens += n;
      const double room = (gap - 1) * machine.seconds(decoding, 0) - machine.overhead;
      could += static_cast<int64_t>(room / machine.per_token);
      times.record(decoding, n, took);
    }
    EXPECT_LE(late, kSteps / 50) << gap;
    EXPECT_GT(static_cast<double>(tokens), 0.6 * static_cast<double>(could)) << gap;
    EXPECT_LT(decode_steps, kSteps / 10) << gap;
  }
}

TEST(StepTimesTest, WhereNothingFitsAPromptStillMovesOn) {
  StepTimes times;
  times.record(1, 0, 0.001);
  times.record(1, 10, 10.0);
  EXPECT_EQ(times.prompt_tokens(1, 3.0), 1);
}

TEST(StepTimesTest, StartsWithADecodeStep) {
  StepTimes times;
  EXPECT_TRUE(times.wants_decode_step(4));
  times.record(4, 0, 0.01);
  EXPECT_FALSE(times.wants_decode_step(4));
  EXPECT_FALSE(times.wants_decode_step(5));
  EXPECT_TRUE(times.wants_decode_step(9));
  EXPECT_TRUE(times.wants_decode_step(2));
}

}  // namespace
}  // namespace sluice::engine
