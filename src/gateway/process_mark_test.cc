#include "gateway/process_mark.h"

#include <gtest/gtest.h>

#include <string>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

using namespace std::chrono_literals;

class ProcessMarkTest : public ::testing::Test {
 protected:
  bool changes(ProcessMark& mark, const std::string& name) { return mark.changes_to(name, now_); }

  TimePoint now_{1h};
};

TEST_F(ProcessMarkTest, TellsANewProcessOnce) {
  ProcessMark mark;
  EXPECT_FALSE(changes(mark, "a")) << "the first that is known";
  EXPECT_FALSE(changes(mark, "a"));
  EXPECT_TRUE(changes(mark, "b"));
  EXPECT_FALSE(changes(mark, "b"));
  EXPECT_FALSE(changes(mark, "a")) << "a late answer of the old one";
  EXPECT_FALSE(changes(mark, "b"));
  EXPECT_TRUE(changes(mark, "c"));
}

TEST_F(ProcessMarkTest, WhatIsKnownAlreadyIsNoNews) {
  ProcessMark mark;
  EXPECT_FALSE(changes(mark, "a"));
  mark.expect_new();
  EXPECT_FALSE(changes(mark, "a")) << "a late answer of the old one";
  EXPECT_FALSE(changes(mark, "b")) << "the one that was expected";
  EXPECT_TRUE(changes(mark, "c"));
}

TEST_F(ProcessMarkTest, LateAnswersOfEachOneBeforeHideNoRestart) {
  ProcessMark mark;
  EXPECT_FALSE(changes(mark, "0"));
  for (int i = 1; i < 100; ++i) {
    EXPECT_TRUE(changes(mark, std::to_string(i)));
    EXPECT_FALSE(changes(mark, std::to_string(i - 1)));
    EXPECT_FALSE(changes(mark, std::to_string(i)));
  }
}

// An upgrade without a pause: both answer for a while. After it the new one is alone, and ends like any other.
TEST_F(ProcessMarkTest, ThoseThatOverlappedOnceHideNoLaterRestart) {
  ProcessMark mark;
  EXPECT_FALSE(changes(mark, "a"));
  EXPECT_TRUE(changes(mark, "b"));
  for (int i = 0; i < 50; ++i) {
    EXPECT_FALSE(changes(mark, "a"));
    EXPECT_FALSE(changes(mark, "b"));
  }
  EXPECT_FALSE(changes(mark, "another")) << "several share the address, as it seems now";
  EXPECT_FALSE(changes(mark, "b"));
  now_ += 61s;
  EXPECT_TRUE(changes(mark, "c"));
}

TEST_F(ProcessMarkTest, OfSeveralBehindOneAddressNoneIsNewsForLong) {
  Rng rng(1);
  for (const uint64_t processes : {2, 12, 40}) {
    ProcessMark mark;
    const auto answer = [&] { return changes(mark, std::to_string(rng.below(processes))); };
    for (int i = 0; i < 200; ++i) answer();
    for (int i = 0; i < 1000; ++i) ASSERT_FALSE(answer()) << processes;
    EXPECT_FALSE(changes(mark, "another"));
    mark.expect_new();
    EXPECT_FALSE(changes(mark, "expected"));
    EXPECT_TRUE(changes(mark, "alone at this address now"));
  }
}

}  // namespace
}  // namespace sluice::gateway
