#include "engine/cooperation_meter.h"

#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

TEST(CooperationMeterTest, WhatIsNewBelongsToTheStepBefore) {
  CooperationMeter meter;
  LoadSnapshot load;
  load.prompt_tokens_total = 30;
  load.cached_tokens_total = 10;
  load.generation_tokens_total = 1;
  load.forward_seconds[0] = 2;
  meter.attribute(2, load);
  load.generation_tokens_total = 4;
  load.forward_seconds[1] = 0.5;
  meter.attribute(0, load);
  meter.attribute(1, load);
  const DpCooperation& counts = load.cooperation;
  EXPECT_EQ(counts.tokens[2][0], 20u);
  EXPECT_EQ(counts.tokens[2][1], 10u);
  EXPECT_EQ(counts.tokens[2][2], 1u);
  EXPECT_EQ(counts.seconds[2][0], 2.0);
  EXPECT_EQ(counts.tokens[0][2], 3u);
  EXPECT_EQ(counts.seconds[0][1], 0.5);
  EXPECT_EQ(counts.tokens[1][2], 0u);
}

TEST(CooperationMeterTest, MoreGroupsThanAreToldApartAreCountedLast) {
  CooperationMeter meter;
  LoadSnapshot load;
  load.generation_tokens_total = 7;
  meter.attribute(1000, load);
  EXPECT_EQ(load.cooperation.tokens[DpCooperation::kMostGroups][2], 7u);
}

}  // namespace
}  // namespace sluice::engine
