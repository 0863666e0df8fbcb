#include "gateway/process_mark.h"

#include <gtest/gtest.h>

#include <string>

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

TEST(ProcessMarkTest, SeveralBehindOneAddressAreNewOnceEach) {
  ProcessMark mark;
  int news = 0;
  for (int i = 0; i < 100; ++i) news += mark.changes_to(std::to_string(i % 8)) ? 1 : 0;
  EXPECT_EQ(news, 7);
}

}  // namespace
}  // namespace sluice::gateway
