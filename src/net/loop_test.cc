#include "net/loop.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <functional>
#include <latch>

namespace sluice::net {
namespace {

using namespace std::chrono_literals;

Task<int> doubled(EventLoop& loop, int value) {
  co_await loop.sleep(1ms);
  co_return 2 * value;
}

TEST(EventLoopTest, RunsFunctionsAndCoroutinesOnItsThread) {
  EventLoop loop("test");
  loop.start();
  EXPECT_FALSE(loop.on_loop_thread());
  bool on_thread = false;
  std::latch done(1);
  loop.post([&] {
    on_thread = loop.on_loop_thread();
    done.count_down();
  });
  done.wait();
  EXPECT_TRUE(on_thread);

  const int result = loop.run<int>([&]() -> Task<int> {
    const int once = co_await doubled(loop, 4);
    co_return co_await doubled(loop, once);
  });
  EXPECT_EQ(result, 16);
  bool ran = false;
  loop.run<void>([&]() -> Task<> {
    ran = loop.on_loop_thread();
    co_return;
  });
  EXPECT_TRUE(ran);
}

TEST(EventLoopTest, KeepsTheCapturesOfASpawnedCoroutine) {
  EventLoop loop("test");
  loop.start();
  std::latch done(1);
  {
    auto text = std::make_shared<std::string>("kept");
    loop.spawn([&loop, &done, text]() -> Task<> {
      co_await loop.sleep(2ms);
      EXPECT_EQ(*text, "kept");
      done.count_down();
    });
  }
  done.wait();
}

TEST(EventLoopTest, ATimerHasItsTurnAmongFunctionsThatNeverEnd) {
  bool over = false;
  std::function<void()> again;
  EventLoop loop("test");
  again = [&] {
    if (!over) loop.post(again);
  };
  loop.start();
  loop.post(again);
  loop.run<void>([&]() -> Task<> {
    co_await loop.sleep(1ms);
    over = true;
  });
}

TEST(EventLoopTest, EndsWithCoroutinesStillAsleep) {
  auto held = std::make_shared<int>(1);
  {
    EventLoop loop("test");
    loop.start();
    std::latch started(1);
    loop.spawn([&loop, &started, held]() -> Task<> {
      started.count_down();
      co_await loop.sleep(1h);
    });
    started.wait();
    loop.stop();
    loop.stop();
  }
  EXPECT_EQ(held.use_count(), 1) << "the coroutine's frame was not destroyed";
}

TEST(EventLoopTest, StopsBeforeItStarted) {
  EventLoop loop("test");
  loop.stop();
  loop.join();
}

TEST(LoopGroupTest, HasOneLoopPerCoreByDefault) {
  LoopGroup loops(0);
  cpu_set_t usable;
  ASSERT_EQ(sched_getaffinity(0, sizeof usable, &usable), 0);
  EXPECT_EQ(loops.size(), static_cast<size_t>(CPU_COUNT(&usable)));
  LoopGroup three(3);
  EXPECT_EQ(three.size(), 3u);
  for (size_t i = 0; i < three.size(); ++i) {
    EXPECT_EQ(three[i].run<size_t>([i]() -> Task<size_t> { co_return i; }), i);
  }
}

}  // namespace
}  // namespace sluice::net
