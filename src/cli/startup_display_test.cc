#include "cli/startup_display.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace sluice::cli {
namespace {

using ::testing::HasSubstr;

class StartupDisplayTest : public ::testing::Test {
 protected:
  StartupDisplayTest() { EXPECT_EQ(::pipe2(ends_, O_CLOEXEC | O_NONBLOCK), 0); }
  ~StartupDisplayTest() override {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  std::string written() {
    char buffer[8192];
    const ssize_t n = ::read(ends_[0], buffer, sizeof buffer);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }
  int ends_[2];
};

TEST_F(StartupDisplayTest, RedrawsOneLinePerWorkerOnATerminal) {
  StartupDisplay display({"worker 0", "worker 1"}, ends_[1], /*terminal=*/true);
  EXPECT_THAT(written(), HasSubstr("worker 1 ["));
  display.progress(1, 0.5, "loading");
  EXPECT_EQ(written(),
            "\x1b[2F\x1b[J\x1b[?7l"
            "worker 0 [                        ]   0% starting\n"
            "worker 1 [############            ]  50% loading\n\x1b[?7h");
  display.print("a log line");
  EXPECT_THAT(written(), HasSubstr("\x1b[2F\x1b[Ja log line\n\x1b[?7lworker 0"));
  display.finish();
  display.ready(0);
  display.print("another");
  EXPECT_EQ(written(), "another\n");
}

TEST_F(StartupDisplayTest, WritesALinePerPhaseElsewhere) {
  StartupDisplay display({"worker 0"}, ends_[1], /*terminal=*/false);
  display.progress(0, 0.1, "loading");
  display.progress(0, 0.2, "loading");
  display.ready(0);
  EXPECT_EQ(written(), "worker 0: loading\nworker 0: ready\n");
}

TEST_F(StartupDisplayTest, R29NobodyWaitsForAReaderThatReadsNothing) {
  const int before = ::dup(STDERR_FILENO);
  ::fcntl(ends_[1], F_SETFL, 0);
  ::dup2(ends_[1], STDERR_FILENO);
  StartupDisplay display({"worker 0"}, STDERR_FILENO, /*terminal=*/false);
  for (int i = 0; i < 2000; ++i) display.print(std::string(99, 'x'));  // three times what a pipe holds
  ::dup2(before, STDERR_FILENO);
  ::close(before);
  EXPECT_THAT(written(), HasSubstr("xxx\n"));
}

}  // namespace
}  // namespace sluice::cli
