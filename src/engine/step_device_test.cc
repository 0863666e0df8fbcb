#include "engine/step_device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>
#include <vector>

namespace sluice::engine {
namespace {

Result<void> failed() { return Error{ErrorCode::kInternal, "the device is on fire"}; }

TEST(InlineDeviceTest, ComputesBeforeSubmitReturns) {
  InlineDevice device;
  EXPECT_EQ(device.depth(), 1);
  int computed = 0;
  for (int i = 1; i <= 3; ++i) {
    device.submit([&] { return ++computed, Result<void>(); });
    EXPECT_EQ(computed, i);
    EXPECT_TRUE(device.wait().ok());
  }
}

TEST(InlineDeviceTest, AnErrorStays) {
  InlineDevice device;
  device.submit(failed);
  EXPECT_FALSE(device.wait().ok());
  bool computed = false;
  device.submit([&] { return computed = true, Result<void>(); });
  EXPECT_EQ(device.wait().error().message, "the device is on fire");
  EXPECT_FALSE(computed);
}

TEST(ThreadDeviceTest, StepsAreComputedInOrderOnOneOtherThread) {
  ThreadDevice device;
  std::vector<int> order;  // of the device's thread between submit() and wait()
  std::vector<std::thread::id> threads;
  for (int i = 0; i < 100; ++i) {
    device.submit([&, i] {
      order.push_back(i);
      threads.push_back(std::this_thread::get_id());
      return Result<void>();
    });
    if (i == 0) continue;  // one is always in flight
    ASSERT_TRUE(device.wait().ok());
  }
  ASSERT_TRUE(device.wait().ok());
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(order.at(static_cast<size_t>(i)), i);
    EXPECT_EQ(threads.at(static_cast<size_t>(i)), threads[0]);
  }
  EXPECT_NE(threads[0], std::this_thread::get_id());
}

TEST(ThreadDeviceTest, TheNextStepBeginsWithoutAnybodyWaiting) {
  ThreadDevice device;
  std::promise<void> first_may_end, second_began;
  device.submit([&] { return first_may_end.get_future().wait(), Result<void>(); });
  device.submit([&] { return second_began.set_value(), Result<void>(); });
  first_may_end.set_value();
  EXPECT_EQ(second_began.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_TRUE(device.wait().ok());
  EXPECT_TRUE(device.wait().ok());
}

TEST(ThreadDeviceTest, WaitReturnsWhenItsStepIsComputedWhateverTheNextOneDoes) {
  ThreadDevice device;
  std::promise<void> second_may_end;
  device.submit([] { return Result<void>(); });
  device.submit([&] { return second_may_end.get_future().wait(), Result<void>(); });
  EXPECT_TRUE(device.wait().ok());
  second_may_end.set_value();
  EXPECT_TRUE(device.wait().ok());
}

TEST(ThreadDeviceTest, StepsAfterAnErrorAreNotComputedAndHaveTheSameOne) {
  ThreadDevice device;
  std::atomic<bool> computed = false;
  device.submit(failed);
  device.submit([&] { return computed = true, Result<void>(); });
  EXPECT_EQ(device.wait().error().message, "the device is on fire");
  EXPECT_EQ(device.wait().error().message, "the device is on fire");
  EXPECT_FALSE(computed);
}

TEST(ThreadDeviceTest, WhatAStepThrowsIsItsError) {
  ThreadDevice device;
  device.submit([]() -> Result<void> { throw std::runtime_error("no memory"); });
  EXPECT_EQ(device.wait().error().message, "no memory");
}

TEST(ThreadDeviceTest, ItsEndWaitsForTheStepThatIsComputedAndDropsTheNextOne) {
  std::atomic<int> begun = 0, ended = 0;
  std::promise<void> began;
  {
    ThreadDevice device;
    const auto step = [&] {
      if (begun++ == 0) began.set_value();
      for (int i = 0; i < 1000; ++i) std::this_thread::yield();
      ++ended;
      return Result<void>();
    };
    device.submit(step);
    began.get_future().wait();
    device.submit(step);
  }
  EXPECT_EQ(begun, ended) << "a step outlives its device";
  EXPECT_GE(ended, 1);
}

TEST(ThreadDeviceDeathTest, AThirdStepIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        ThreadDevice device;
        for (int i = 0; i < 3; ++i) device.submit([] { return Result<void>(); });
      },
      "2 steps are not waited for");
}

}  // namespace
}  // namespace sluice::engine
