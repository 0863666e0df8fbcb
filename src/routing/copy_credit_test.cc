#include "routing/copy_credit.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace sluice::routing {
namespace {

using namespace std::chrono_literals;

constexpr double kPrice = 0.05;  // seconds

class CopyCreditTest : public testing::Test {
 protected:
  // That many requests, each so much later than the one before, of which each waits `saves` seconds in vain; how many
  // of them pay for a copy.
  int copies(int requests, Duration apart, double saves, const PrefixPlace& prefix = {.node = 1}) {
    int paid = 0;
    for (int i = 0; i < requests; ++i) {
      now_ += apart;
      paid += credit_.earn(prefix, saves, kPrice, now_) ? 1 : 0;
    }
    return paid;
  }

  CopyCredit credit_;
  TimePoint now_{1h};
};

TEST_F(CopyCreditTest, ACopyIsMadeWhereMoreThanTwoRequestsStandInLineInVain) {
  EXPECT_EQ(copies(1000, 10ms, 0.015), 0) << "one and a half";
  EXPECT_GT(copies(1000, 10ms, 0.03), 0) << "three";
}

TEST_F(CopyCreditTest, WhatIsPaidIsSpent) {
  const int first = 1 + [&] {
    int requests = 0;
    while (copies(1, 10ms, 0.03) == 0) ++requests;
    return requests;
  }();
  EXPECT_GT(first, 10) << "it has to last longer than the copy takes, twice or so";
  EXPECT_EQ(copies(first - 2, 10ms, 0.03), 0);
  EXPECT_EQ(copies(2, 10ms, 0.03), 1);
}

TEST_F(CopyCreditTest, ABurstEarnsNextToNothing) {
  EXPECT_EQ(copies(1000, 10us, 10), 0) << "all in a fifth of the price";
  EXPECT_EQ(copies(1000, 0us, 10), 0);
}

TEST_F(CopyCreditTest, ThoseThatWaitNowAndThenNeverPay) { EXPECT_EQ(copies(1000, 1s, 0.1), 0); }

TEST_F(CopyCreditTest, PrefixesOfOneAccountDoNotPayForEachOther) {
  const PrefixPlace often{.node = 1, .born = 1}, seldom{.node = 257, .born = 1}, born_later{.node = 1, .born = 2};
  int paid = 0;
  for (int i = 0; i < 100; ++i) {
    paid += copies(1, 5ms, 0.03, often);
    EXPECT_EQ(copies(1, 1ms, 0.002, seldom), 0);
    EXPECT_EQ(copies(1, 1ms, 0.002, born_later), 0);
  }
  EXPECT_GT(paid, 0) << "and those that earn little take nothing from it";
  EXPECT_EQ(copies(1, 1s, 0.03, seldom), 0) << "once it is left it is taken over";
  EXPECT_GT(copies(100, 10ms, 0.03, seldom), 0);
}

TEST_F(CopyCreditTest, ManyThreadsPayOnce) {
  std::atomic<int> paid{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        if (credit_.earn({.node = 1}, 0.03, kPrice, now_ + i * 10ms)) ++paid;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(paid, 0);
  EXPECT_LE(paid, copies(2000, 10ms, 0.03, {.node = 2})) << "as one after the other would";
}

TEST_F(CopyCreditTest, ATextWithoutAPlaceEarnsNothing) { EXPECT_EQ(copies(1000, 10ms, 0.1, {}), 0); }

}  // namespace
}  // namespace sluice::routing
