#include "engine/api/work_pool.h"

#include <gtest/gtest.h>

#include <future>
#include <stdexcept>

namespace sluice::engine {
namespace {

TEST(WorkPoolTest, WhatWorkThrowsIsItsError) {
  net::EventLoop loop("test");
  loop.start();
  WorkPool pool(1);
  std::promise<Result<int>> thrown, next;
  loop.spawn([&]() -> net::Task<> {
    thrown.set_value(co_await pool.run(loop, []() -> Result<int> { throw std::runtime_error("no such member"); }));
    next.set_value(co_await pool.run(loop, []() -> Result<int> { return 7; }));
  });
  const auto error = thrown.get_future().get();
  ASSERT_FALSE(error.ok());
  EXPECT_EQ(error.error().code, ErrorCode::kInternal);
  EXPECT_EQ(error.error().message, "not foreseen: no such member");
  EXPECT_EQ(*next.get_future().get(), 7) << "the thread is still there";
}

}  // namespace
}  // namespace sluice::engine
