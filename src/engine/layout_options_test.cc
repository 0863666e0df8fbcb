#include "engine/layout_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::engine {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

EngineOptions options_of(const std::vector<std::string>& flags) {
  auto parsed = engine_option_table().parse(flags);
  EXPECT_TRUE(parsed.ok());
  return *parsed;
}
EngineOptions dp_attention(int64_t tp, int64_t dp) {
  return options_of({"--tp", std::to_string(tp), "--dp-size", std::to_string(dp), "--enable-dp-attention"});
}

TEST(LayoutOptionsTest, WithoutDpAttentionNothingChanges) {
  EngineOptions options = options_of({"--tp", "4", "--max-running-requests", "64"});
  const double conservativeness = options.schedule_conservativeness;
  EXPECT_THAT(adjust_layout(options), IsEmpty());
  EXPECT_EQ(options.max_running_requests, 64);
  EXPECT_EQ(options.schedule_conservativeness, conservativeness);
  EXPECT_EQ(options.ep_size, 1);
}

TEST(LayoutOptionsTest, WhatAServerMayRunAtOnceIsDividedAmongItsAttentionGroups) {
  EngineOptions options = dp_attention(8, 4);
  options.max_running_requests = 66;
  options.chunked_prefill_size = 512;
  options.schedule_conservativeness = 1;
  EXPECT_THAT(adjust_layout(options), ElementsAre("--chunked-prefill-size 512 -> 128: of each attention group",
                                                  "--schedule-conservativeness 1 -> 0.3: with DP attention",
                                                  "--max-running-requests 66 -> 16: of each attention group"));
  EXPECT_EQ(options.max_running_requests, 16);
  EXPECT_EQ(options.chunked_prefill_size, 128);
  EXPECT_DOUBLE_EQ(options.schedule_conservativeness, 0.3);
}

TEST(LayoutOptionsTest, EachGroupMayRunOneRequestAtLeastAndNoLimitStaysNone) {
  EngineOptions options = dp_attention(8, 8);
  options.max_running_requests = 3;
  EXPECT_THAT(adjust_layout(options), Contains("--max-running-requests 3 -> 1: of each attention group"));
  EXPECT_EQ(options.max_running_requests, 1);
  options = dp_attention(8, 8);
  adjust_layout(options);
  EXPECT_FALSE(options.max_running_requests.has_value());
}

TEST(LayoutOptionsTest, WhatNeedsDpAttentionIsOffWithoutItAndSaysSo) {
  EngineOptions options = options_of({"--tp", "2"});
  options.enable_dp_lm_head = options.enable_prefill_delayer = true;
  options.prefill_delayer_token_usage_low_watermark = 0.5;
  EXPECT_THAT(adjust_layout(options), ElementsAre("--enable-dp-lm-head is off: there is no DP attention",
                                                  "--enable-prefill-delayer is off: there is no DP attention"));
  EXPECT_FALSE(options.enable_dp_lm_head);
  EXPECT_FALSE(options.enable_prefill_delayer);
  EXPECT_FALSE(options.prefill_delayer_token_usage_low_watermark.has_value());
}

TEST(LayoutOptionsTest, OneAttentionGroupIsNoDpAttentionAndTakesWhatNeedsItAlong) {
  EngineOptions options = dp_attention(4, 1);
  options.enable_dp_lm_head = options.enable_prefill_delayer = true;
  options.max_running_requests = 8;
  EXPECT_THAT(adjust_layout(options), ElementsAre("--enable-dp-attention is off: --dp-size is 1",
                                                  "--enable-dp-lm-head is off: there is no DP attention",
                                                  "--enable-prefill-delayer is off: there is no DP attention"));
  EXPECT_EQ(options.max_running_requests, 8);
  EXPECT_FALSE(layout_of(options, 0).dp_attention());
}

TEST(LayoutOptionsTest, WithDpAttentionTheHeadAndTheDelayerStay) {
  EngineOptions options = dp_attention(4, 2);
  options.enable_dp_lm_head = options.enable_prefill_delayer = true;
  EXPECT_THAT(adjust_layout(options), Not(Contains(HasSubstr("is off"))));
  EXPECT_TRUE(layout_of(options, 3).dp_lm_head);
  EXPECT_TRUE(options.enable_prefill_delayer);
}

TEST(LayoutOptionsTest, DeepEpHasItsExpertsOnAllRanks) {
  EngineOptions options = options_of({"--tp", "4", "--moe-a2a-backend", "deepep"});
  EXPECT_THAT(adjust_layout(options), ElementsAre("--ep-size 1 -> 4: deepep sends tokens among all ranks"));
  EXPECT_EQ(layout_of(options, 1).ep_size, 4);
  EXPECT_THAT(adjust_layout(options), IsEmpty()) << "once is enough";
}

}  // namespace
}  // namespace sluice::engine
