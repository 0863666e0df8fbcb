#include "parallel/exchange_log.h"

#include <gtest/gtest.h>

namespace sluice::parallel {
namespace {

StepRow row(int64_t seq, ForwardMode mode, int64_t tokens) {
  return {.seq = seq, .num_tokens = tokens, .local_forward_mode = static_cast<int64_t>(mode)};
}

TEST(ExchangeLogTest, SaysOfEachRankWhatItBroughtAndCountsWhatFollowsItself) {
  ExchangeLog log({.tp_rank = 1, .tp_size = 2, .dp_size = 2});
  EXPECT_EQ(log.text(), "");
  StepRow unready = row(2, ForwardMode::kIdle, 0);
  unready.more_to_come = 1;
  log.record(std::vector{row(1, ForwardMode::kExtend, 56), row(1, ForwardMode::kIdle, 0)});
  log.record(std::vector{row(2, ForwardMode::kDecode, 4), unready});
  log.record(std::vector{row(3, ForwardMode::kDecode, 4), row(3, ForwardMode::kMixed, 9)});
  EXPECT_EQ(log.text(),
            "exchanges 1 to 3; rank 0: prefill of 56, 2 x decode of 4; rank 1: idle, not ready, mixed of 9");
}

TEST(ExchangeLogTest, KeepsTheLast64) {
  ExchangeLog log({.tp_size = 1});
  for (int64_t seq = 1; seq <= 100; ++seq) {
    log.record(std::vector{seq < 40 ? row(seq, ForwardMode::kExtend, 7) : row(seq, ForwardMode::kDecode, 2)});
  }
  EXPECT_EQ(log.text(), "exchanges 37 to 100; rank 0: 3 x prefill of 7, 61 x decode of 2");
}

TEST(ExchangeLogTest, TheRanksOfAnAttentionGroupAreOne) {
  ExchangeLog log({.tp_rank = 3, .tp_size = 4, .dp_size = 2});
  const StepRow follower{.seq = 8};
  log.record(std::vector{row(8, ForwardMode::kDecode, 1), follower, row(8, ForwardMode::kIdle, 0), follower});
  EXPECT_EQ(log.text(), "exchanges 8 to 8; ranks 0 to 1: decode of 1; ranks 2 to 3: idle");
}

}  // namespace
}  // namespace sluice::parallel
