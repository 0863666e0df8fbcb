#include "gateway/process_mark.h"

#include <gtest/gtest.h>

#include <string>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

TEST(ProcessMarkTest, TellsANewProcessOnce) {
  ProcessMark mark;
  EXPECT_FALSE(mark.changes_to("a")) << "the first that is known";
  EXPECT_FALSE(mark.changes_to("a"));
  EXPECT_TRUE(mark.changes_to("b"));
  EXPECT_FALSE(mark.changes_to("b"));
  EXPECT_FALSE(mark.changes_to("a")) << "a late answer of the old one";
  EXPECT_FALSE(mark.changes_to("b"));
  EXPECT_TRUE(mark.changes_to("c"));
}

TEST(ProcessMarkTest, WhatIsKnownAlreadyIsNoNews) {
  ProcessMark mark;
  EXPECT_FALSE(mark.changes_to("a"));
  mark.expect_new();
  EXPECT_FALSE(mark.changes_to("a")) << "a late answer of the old one";
  EXPECT_FALSE(mark.changes_to("b")) << "the one that was expected";
  EXPECT_TRUE(mark.changes_to("c"));
}

TEST(ProcessMarkTest, LateAnswersOfEachOneBeforeHideNoRestart) {
  ProcessMark mark;
  EXPECT_FALSE(mark.changes_to("0"));
  for (int i = 1; i < 100; ++i) {
    EXPECT_TRUE(mark.changes_to(std::to_string(i)));
    EXPECT_FALSE(mark.changes_to(std::to_string(i - 1)));
    EXPECT_FALSE(mark.changes_to(std::to_string(i)));
  }
}

TEST(ProcessMarkTest, OfSeveralBehindOneAddressNoneIsNewsForLong) {
  Rng rng(1);
  for (const uint64_t processes : {2, 12, 40}) {
    ProcessMark mark;
    const auto answer = [&] { return mark.changes_to(std::to_string(rng.below(processes))); };
    for (int i = 0; i < 200; ++i) answer();
    for (int i = 0; i < 1000; ++i) ASSERT_FALSE(answer()) << processes;
    EXPECT_FALSE(mark.changes_to("another"));
    mark.expect_new();
    EXPECT_FALSE(mark.changes_to("expected"));
    EXPECT_TRUE(mark.changes_to("alone at this address now"));
  }
}

}  // namespace
}  // namespace sluice::gateway
