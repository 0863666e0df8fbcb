#include "net/poller.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <memory>
#include <vector>

namespace sluice::net {
namespace {

using namespace std::chrono_literals;

// One end of a pair of sockets in a poller; writes to the other end are news.
class Watched final : public Poller::Watcher {
 public:
  explicit Watched(Poller& poller) : poller_(poller) {
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends_.data()), 0);
    poller_.add(ends_[0], *this, EPOLLIN | EPOLLRDHUP);
  }
  ~Watched() {
    remove();
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  void say() { EXPECT_EQ(::write(ends_[1], "x", 1), 1); }
  void remove() { poller_.remove(ends_[0], *this); }

  int calls = 0;
  uint32_t events = 0;
  std::function<void()> then;
  bool shut_down = false;

 private:
  void on_events(uint32_t what) override {
    ++calls;
    events |= what;
    if (then) then();
  }
  void on_shutdown() override { shut_down = true; }

  Poller& poller_;
  std::array<int, 2> ends_{};
};

class PollerTest : public testing::Test {
 protected:
  ~PollerTest() override { poller_.shutdown(); }
  // Whatever there is.
  void run() {
    while (poller_.collect(false)) poller_.dispatch();
  }

  Poller poller_;
};

TEST_F(PollerTest, TellsEachNewsOnce) {
  Watched watched(poller_);
  run();
  EXPECT_EQ(watched.calls, 0);
  watched.say();
  run();
  EXPECT_EQ(watched.calls, 1);
  watched.say();  // nobody has read the first byte
  run();
  EXPECT_EQ(watched.calls, 2);
  EXPECT_EQ(watched.events, static_cast<uint32_t>(EPOLLIN));
}

TEST_F(PollerTest, TellsOfMoreSocketsThanOneCallCollects) {
  std::vector<std::unique_ptr<Watched>> all;
  for (int i = 0; i < 300; ++i) all.push_back(std::make_unique<Watched>(poller_));
  for (const auto& watched : all) watched->say();
  run();
  for (const auto& watched : all) EXPECT_EQ(watched->calls, 1);
}

TEST_F(PollerTest, AWatcherThatWasRemovedMeanwhileHearsNothing) {
  auto first = std::make_unique<Watched>(poller_);
  auto second = std::make_unique<Watched>(poller_);
  const auto end = [&](std::unique_ptr<Watched>& other) { return [&other] { other.reset(); }; };
  first->then = end(second);
  second->then = end(first);
  first->say();
  second->say();
  run();
  EXPECT_NE(first == nullptr, second == nullptr);
  EXPECT_EQ((first ? first : second)->calls, 1);
}

TEST_F(PollerTest, EachCallEndsASleep) {
  for (int i = 0; i < 3; ++i) {
    poller_.wake();
    poller_.wake();
    EXPECT_TRUE(poller_.collect(true)) << "it would sleep for ever";
    EXPECT_FALSE(poller_.dispatch()) << "that was no alarm";
    EXPECT_FALSE(poller_.collect(false)) << "two calls are one";
  }
}

TEST_F(PollerTest, TheAlarmEndsASleepOnceAndNeverTooSoon) {
  for (const Duration after : {Duration(-std::chrono::hours(1)), Duration::zero(), Duration(1ms)}) {
    const TimePoint at = std::chrono::steady_clock::now() + after;
    poller_.alarm_by(at);
    poller_.alarm_by(TimePoint::max());
    poller_.alarm_by(at + 1h);  // it is to go off sooner already
    EXPECT_TRUE(poller_.collect(true));
    EXPECT_GE(std::chrono::steady_clock::now(), at);
    EXPECT_TRUE(poller_.dispatch());
    EXPECT_FALSE(poller_.collect(false));
  }
  poller_.alarm_by(TimePoint{});  // the beginning of time is no exception
  EXPECT_TRUE(poller_.collect(true));
  EXPECT_TRUE(poller_.dispatch());
}

TEST_F(PollerTest, TheAlarmCanBeSetToGoOffSooner) {
  poller_.alarm_by(std::chrono::steady_clock::now() + 1h);
  poller_.alarm_by(std::chrono::steady_clock::now());
  EXPECT_TRUE(poller_.collect(true)) << "it would sleep for an hour";
  EXPECT_TRUE(poller_.dispatch());
}

TEST_F(PollerTest, NewsOfSocketsAreNoAlarm) {
  Watched watched(poller_);
  poller_.alarm_by(std::chrono::steady_clock::now() + 1h);
  watched.say();
  EXPECT_TRUE(poller_.collect(true));
  EXPECT_FALSE(poller_.dispatch());
  EXPECT_EQ(watched.calls, 1);
}

TEST_F(PollerTest, ShutdownTellsThoseThatAreLeft) {
  Watched left(poller_);
  Watched removed(poller_);
  removed.remove();
  poller_.shutdown();
  EXPECT_TRUE(left.shut_down);
  EXPECT_FALSE(removed.shut_down);
}

}  // namespace
}  // namespace sluice::net
