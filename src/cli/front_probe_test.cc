#include "cli/front_probe.h"

#include <gtest/gtest.h>
#include <poll.h>

#include "testing/fake_clock.h"
#include "testing/raw_listener.h"

namespace sluice::cli {
namespace {

using namespace std::chrono_literals;

class FrontProbeTest : public ::testing::Test {
 protected:
  void watch(const std::string& url) {
    auto opened = FrontProbe::open(url, 30s, clock_);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    probe_.emplace(std::move(*opened));
  }
  void pass(Duration time) {
    clock_.advance(time);
    probe_->look();
  }
  // Until the descriptor has what the probe waits for, 10 s at most.
  void look_when_ready() {
    pollfd entry{probe_->descriptor(), probe_->events(), 0};
    ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
    probe_->look();
  }
  // Takes the connection with the question.
  int take() {
    look_when_ready();  // connected: it is sent
    const int fd = ::accept(listener_.fd(), nullptr, nullptr);
    char buffer[256];
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    EXPECT_TRUE(
        std::string_view(buffer, static_cast<size_t>(std::max<ssize_t>(n, 0))).starts_with("GET /ping HTTP/1.1"));
    return fd;
  }
  void answer() {
    const int fd = take();
    EXPECT_GT(::send(fd, "HTTP/1.1 401 \r\n\r\n", 17, MSG_NOSIGNAL), 0);
    look_when_ready();
    ::close(fd);
  }

  testing::FakeClock clock_;
  testing::RawListener listener_;
  std::optional<FrontProbe> probe_;
};

TEST_F(FrontProbeTest, GivesUpAfterThreeQuestionsThatNobodyReads) {
  watch(listener_.url());
  EXPECT_EQ(probe_->descriptor(), -1) << "it has just said that it is ready";
  pass(10s);
  for (int question = 0; question < 3; ++question) {
    ASSERT_GE(probe_->descriptor(), 0);
    look_when_ready();
    pass(9s);
    EXPECT_FALSE(probe_->gave_up()) << question;
    pass(1s);
  }
  EXPECT_TRUE(probe_->gave_up());
}

TEST_F(FrontProbeTest, AnyAnswerStartsOver) {
  watch(listener_.url());
  pass(10s);
  for (int round = 0; round < 5; ++round) {
    pass(10s);
    pass(10s);
    EXPECT_FALSE(probe_->gave_up()) << "two without an answer";
    // Those that nobody took are before the last in the queue.
    for (int i = 0; i < 2; ++i) ::close(::accept(listener_.fd(), nullptr, nullptr));
    answer();
    EXPECT_EQ(probe_->descriptor(), -1);
    pass(9s);
    EXPECT_EQ(probe_->descriptor(), -1) << "a pause";
    pass(1s);
    EXPECT_GE(probe_->descriptor(), 0);
  }
}

// The time is over and the answer is there: whoever watches was stopped as well.
TEST_F(FrontProbeTest, AnAnswerThatCameWhileNobodyLookedCounts) {
  watch(listener_.url());
  pass(10s);
  pass(10s);
  pass(10s);
  for (int i = 0; i < 2; ++i) ::close(::accept(listener_.fd(), nullptr, nullptr));
  const int fd = take();
  EXPECT_GT(::send(fd, "H", 1, MSG_NOSIGNAL), 0);
  pollfd entry{probe_->descriptor(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 10'000), 1);
  pass(1h);
  EXPECT_FALSE(probe_->gave_up());
  ::close(fd);
}

TEST_F(FrontProbeTest, WhatIsHeardElsewhereStartsOver) {
  watch(listener_.url());
  for (int i = 0; i < 3; ++i) pass(10s);
  probe_->heard();
  for (int i = 0; i < 2; ++i) pass(10s);
  EXPECT_FALSE(probe_->gave_up());
  pass(10s);
  EXPECT_TRUE(probe_->gave_up());
}

TEST_F(FrontProbeTest, AConnectionThatIsClosedIsNeitherSilenceNorAnAnswer) {
  watch(listener_.url());
  for (int i = 0; i < 3; ++i) pass(10s);  // two were not answered
  for (int i = 0; i < 2; ++i) ::close(::accept(listener_.fd(), nullptr, nullptr));
  ::close(take());
  look_when_ready();  // closed
  EXPECT_EQ(probe_->descriptor(), -1) << "not asked again at once";
  EXPECT_FALSE(probe_->gave_up());
  pass(10s);
  ASSERT_GE(probe_->descriptor(), 0);
  EXPECT_FALSE(probe_->gave_up()) << "what was closed has not been silent";
  pass(10s);
  EXPECT_TRUE(probe_->gave_up()) << "the two before it still count";
}

// It got SIGTERM, listens no more and finishes what it has.
TEST_F(FrontProbeTest, AFrontThatListensNoMoreMayTakeItsTime) {
  watch(listener_.url());
  pass(10s);
  look_when_ready();
  listener_.close();  // which resets what nobody accepted
  for (int i = 0; i < 20; ++i) {
    if (probe_->descriptor() >= 0) look_when_ready();
    EXPECT_EQ(probe_->descriptor(), -1);
    pass(10s);
    EXPECT_FALSE(probe_->gave_up());
  }
}

TEST_F(FrontProbeTest, AnAddressThatIsNoneIsAnError) {
  EXPECT_FALSE(FrontProbe::open("http://no such host:1", 30s, clock_).ok());
}

}  // namespace
}  // namespace sluice::cli
