#include "base/ready_pipe.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace sluice {
namespace {

TEST(ReadyPipeTest, TheParentReadsWhatTheWorkerReports) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  {
    ReadyReporter reporter(ends[1]);
    reporter.progress(0.4, "loading \"weights\"\n");
    reporter.progress(0.5, "held back: too soon after the first");
    reporter.failed("broken \xff");
    reporter.ready("http://127.0.0.1:31000");
  }
  char buffer[4096];
  const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
  ::close(ends[0]);
  ASSERT_GT(n, 0);

  ReadyParser parser;
  std::vector<ReadyReport> reports;
  for (ssize_t i = 0; i < n; ++i) {
    for (auto& report : parser.feed({buffer + i, 1})) reports.push_back(report);
  }
  ASSERT_EQ(reports.size(), 3u);
  EXPECT_EQ(reports[0].share, 0.4);
  EXPECT_EQ(reports[0].what, "loading \"weights\"\n");
  EXPECT_EQ(reports[1].status, ReadyReport::Status::kFailed);
  EXPECT_EQ(reports[2].status, ReadyReport::Status::kReady);
  EXPECT_EQ(reports[2].url, "http://127.0.0.1:31000");
}

TEST(ReadyPipeTest, SkipsLinesThatAreNoReports) {
  ReadyParser parser;
  const auto reports = parser.feed("hello\n[1]\n{\"status\":7}\n{\"status\":\"progress\",\"share\":\"x\"}\n");
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].share, 0);
}

TEST(ReadyPipeTest, ReportsNowhereWithoutAPipe) {
  ReadyReporter reporter(-1);
  reporter.ready("http://x");
}

}  // namespace
}  // namespace sluice
