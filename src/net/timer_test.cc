#include "net/timer.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <memory>
#include <vector>

#include "base/rng.h"

namespace sluice::net {
namespace {

using namespace std::chrono_literals;

class TimerTest : public testing::Test {
 protected:
  Executor executor() { return context_.get_executor(); }
  TimerQueue& queue() { return asio::use_service<TimerQueue>(context_); }
  void run() {
    context_.restart();
    context_.poll();
  }
  // Says its name when it ends, with a minus if it was cancelled.
  void wait(Timer& timer, int name) {
    timer.async_wait([this, name](const boost::system::error_code& error) { told_.push_back(error ? -name : name); });
  }

  const TimePoint zero_{};
  asio::io_context context_;
  std::vector<int> told_;
};

TEST_F(TimerTest, TellsInTheOrderOfTime) {
  Timer late(executor(), zero_ + 3s), soon(executor(), zero_ + 1s), never(executor(), TimePoint::max());
  EXPECT_EQ(queue().next(), std::nullopt) << "nobody waits";
  wait(late, 3);
  wait(never, 9);
  wait(soon, 1);
  EXPECT_EQ(queue().next(), zero_ + 1s);
  queue().fire(zero_ + 999ms);
  EXPECT_EQ(told_, std::vector<int>());
  queue().fire(zero_ + 1s);
  EXPECT_EQ(told_, std::vector<int>({1}));
  EXPECT_EQ(queue().next(), zero_ + 3s);
  queue().fire(zero_ + 24h);
  EXPECT_EQ(told_, std::vector<int>({1, 3}));
}

TEST_F(TimerTest, WhoIsToldMayTakeBackAnotherWaitThatIsDueToo) {
  Timer first(executor(), zero_ + 1s), second(executor(), zero_ + 1s);
  auto third = std::make_unique<Timer>(executor(), zero_ + 1s);
  first.async_wait([&](const boost::system::error_code&) {
    second.cancel();
    third.reset();
    told_.push_back(1);
  });
  wait(second, 2);
  wait(*third, 3);
  queue().fire(zero_ + 2s);
  EXPECT_EQ(told_, std::vector<int>({1}));
  run();
  EXPECT_EQ(told_, std::vector<int>({1, -2, -3}));
  EXPECT_EQ(queue().next(), std::nullopt);
}

TEST_F(TimerTest, AWaitThatIsTakenBackEndsLaterAndOnce) {
  Timer timer(executor(), zero_ + 1s);
  timer.cancel();  // nobody waits: nothing
  wait(timer, 1);
  timer.expires_at(zero_ + 2s);
  EXPECT_EQ(told_, std::vector<int>()) << "from the loop";
  wait(timer, 2);
  run();
  EXPECT_EQ(told_, std::vector<int>({-1}));
  queue().fire(zero_ + 2s);
  timer.cancel();
  run();
  EXPECT_EQ(told_, std::vector<int>({-1, 2}));
  {
    Timer gone(executor(), zero_ + 1s);
    wait(gone, 3);
  }
  run();
  EXPECT_EQ(told_.back(), -3);
}

TEST_F(TimerTest, WhoIsToldMayWaitAnewAndIsNotToldAgainInTheSameTurn) {
  Timer timer(executor(), zero_ + 1s);
  int turns = 0;
  std::function<void(const boost::system::error_code&)> again = [&](const auto& error) {
    ASSERT_FALSE(error);
    if (++turns < 3) timer.async_wait(again);
  };
  timer.async_wait(again);
  for (int i = 1; i <= 3; ++i) {
    queue().fire(zero_ + 5s);
    EXPECT_EQ(turns, i);
  }
  EXPECT_EQ(queue().next(), std::nullopt);
}

TEST_F(TimerTest, ManyAreToldInOrderWhicheverAreTakenBack) {
  Rng rng(7);
  std::vector<std::unique_ptr<Timer>> timers;
  std::vector<int> expected;
  for (int i = 0; i < 500; ++i) {
    const int at = static_cast<int>(rng.below(200)) + 1;
    timers.push_back(std::make_unique<Timer>(executor(), zero_ + std::chrono::milliseconds(at)));
    wait(*timers.back(), at);
    if (rng.below(3) == 0) {
      timers[rng.below(timers.size())]->cancel();
    }
  }
  run();
  const auto cancelled = told_.size();
  EXPECT_GT(cancelled, 50u);
  told_.clear();
  for (int now = 1; now <= 200; now += 7) queue().fire(zero_ + std::chrono::milliseconds(now));
  queue().fire(zero_ + 1s);
  EXPECT_EQ(told_.size(), 500 - cancelled);
  for (size_t i = 1; i < told_.size(); ++i) EXPECT_LE(told_[i - 1], told_[i]);
}

TEST(TimerQueueTest, TheEndOfTheContextDropsWhoWaits) {
  const auto held = std::make_shared<int>(1);
  {
    asio::io_context context;
    auto timer = std::make_shared<Timer>(context.get_executor(), TimePoint::max());
    timer->async_wait([held, timer](const boost::system::error_code&) { ADD_FAILURE() << "nobody is told any more"; });
  }
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace sluice::net
