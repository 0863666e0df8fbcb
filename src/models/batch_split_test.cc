#include "models/batch_split.h"

#include <gtest/gtest.h>

namespace sluice::models {
namespace {

constexpr double kThreshold = 0.48;

// Of sequences with so many new tokens each.
int64_t split(const std::vector<int32_t>& lengths, double threshold = kThreshold) {
  std::vector<int32_t> starts{0};
  for (const int32_t length : lengths) starts.push_back(starts.back() + length);
  const std::vector<int32_t> ids(static_cast<size_t>(starts.back()));
  return split_batch({.token_ids = ids, .query_start = starts}, threshold);
}

TEST(BatchSplitTest, SequencesThatDecodeAreHalved) {
  EXPECT_EQ(split({1, 1, 1, 1}), 2);
  EXPECT_EQ(split({1, 1, 1}), 1);
  EXPECT_EQ(split({1, 1}), 1);
}

TEST(BatchSplitTest, WhatIsOneTokenOrNoneIsNotSplit) {
  EXPECT_EQ(split({1}), 0);
  EXPECT_EQ(split({}), 0);
}

TEST(BatchSplitTest, PromptsStayWholeWhereTheHalvesAreNearlyEqual) {
  EXPECT_EQ(split({30, 20, 48}), 50);
  EXPECT_EQ(split({48, 52}), 48);
}

TEST(BatchSplitTest, OneIsCutInTheMiddleWhereTheyAreNot) {
  EXPECT_EQ(split({47, 53}), 50);
  EXPECT_EQ(split({100}), 50);
  EXPECT_EQ(split({10, 91}), 50);
  EXPECT_EQ(split({47, 53}, 0.4), 47);
  EXPECT_EQ(split({10, 91}, 0), 10);
}

TEST(BatchSplitTest, AHalfHasItsSequencesAsLongAsItsTokensMakeThem) {
  // 2, 5 and 1 new tokens of sequences of 10, 5 and 7.
  const std::vector<int32_t> starts{0, 2, 7, 8}, lengths{10, 5, 7};
  const auto cut = halves_of(starts, lengths, 4);
  EXPECT_EQ(cut[0].tokens, 4);
  EXPECT_EQ(cut[0].first_sequence, 0);
  EXPECT_EQ(cut[0].query_start, (std::vector<int32_t>{0, 2, 4}));
  EXPECT_EQ(cut[0].seq_lens, (std::vector<int32_t>{10, 2}));
  EXPECT_EQ(cut[1].first_token, 4);
  EXPECT_EQ(cut[1].tokens, 4);
  EXPECT_EQ(cut[1].first_sequence, 1);
  EXPECT_EQ(cut[1].query_start, (std::vector<int32_t>{0, 3, 4}));
  EXPECT_EQ(cut[1].seq_lens, (std::vector<int32_t>{5, 7}));

  const auto whole = halves_of(starts, lengths, 7);
  EXPECT_EQ(whole[0].end_sequence(), 2);
  EXPECT_EQ(whole[1].first_sequence, 2);
  EXPECT_EQ(whole[1].seq_lens, std::vector<int32_t>{7});

  const auto none = halves_of(std::vector<int32_t>{0}, {}, 0);
  EXPECT_EQ(none[0].tokens + none[1].tokens, 0);
  EXPECT_EQ(none[1].query_start, std::vector<int32_t>{0});
}

}  // namespace
}  // namespace sluice::models
