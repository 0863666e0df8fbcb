// R29: a log that nobody reads.
#include "base/stderr_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

namespace sluice {
namespace {

class StderrWriterTest : public ::testing::Test {
 protected:
  StderrWriterTest() : before_(::dup(STDERR_FILENO)) {
    EXPECT_EQ(::pipe(ends_), 0);
    ::fcntl(ends_[0], F_SETFL, O_NONBLOCK);
    ::dup2(ends_[1], STDERR_FILENO);
  }
  ~StderrWriterTest() override {
    ::dup2(before_, STDERR_FILENO);
    for (const int fd : {before_, ends_[0], ends_[1]}) ::close(fd);
  }
  std::string read_all() {
    std::string out;
    char buffer[65536];
    for (ssize_t n; (n = ::read(ends_[0], buffer, sizeof buffer)) > 0;) out.append(buffer, static_cast<size_t>(n));
    return out;
  }

  const int before_;
  int ends_[2];
};

TEST_F(StderrWriterTest, R29AReaderThatReadsNothingKeepsNobodyWaitingAndIsToldWhatItMissed) {
  const std::string line = std::string(99, 'x') + "\n";
  for (int i = 0; i < 10'000; ++i) write_stderr(line);  // a megabyte; a pipe holds 64 KiB
  const std::string held = read_all();
  EXPECT_LT(held.size(), 10'000 * line.size());
  write_stderr("it goes on\n");
  EXPECT_EQ(read_all(), "(" + std::to_string(10'000 * line.size() - held.size()) +
                            " bytes of the log were lost here: nobody read it)\nit goes on\n");
}

TEST_F(StderrWriterTest, WhatIsLongerThanAPieceArrivesWhole) {
  std::string text;
  for (int i = 0; i < 3'000; ++i) text += std::to_string(i) + "\n";
  write_stderr(text);
  EXPECT_EQ(read_all(), text);
}

TEST_F(StderrWriterTest, R29AFullDiskIsNoReasonToWait) {
  const int full = ::open("/dev/full", O_WRONLY);
  ::dup2(full, STDERR_FILENO);
  ::close(full);
  write_stderr("lost\n");
  ::dup2(ends_[1], STDERR_FILENO);
  write_stderr("kept\n");
  EXPECT_EQ(read_all(), "kept\n");
}

}  // namespace
}  // namespace sluice
