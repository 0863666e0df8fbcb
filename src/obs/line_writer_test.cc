#include "obs/line_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

namespace sluice::obs {
namespace {

class LineWriterTest : public testing::Test {
 protected:
  LineWriterTest() {
    std::string name = testing::TempDir() + "line_writer_XXXXXX";
    folder_ = mkdtemp(name.data());
    path_ = folder_ + "/lines";
  }
  ~LineWriterTest() override { std::filesystem::remove_all(folder_); }

  static std::string content(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // Bounded by count.
  template <class F>
  static bool eventually(F condition) {
    for (int i = 0; i < 4000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  std::string folder_, path_;
};

TEST_F(LineWriterTest, WritesLinesInOrderAndWhatWaitsAtTheEnd) {
  std::string expected;
  {
    auto writer = LineWriter::open(path_).value();
    for (int i = 0; i < 1000; ++i) {
      writer->add(std::to_string(i));
      expected += std::to_string(i) + "\n";
    }
  }
  EXPECT_EQ(content(path_), expected);
}

TEST_F(LineWriterTest, SaysWhatItCannotOpen) {
  const auto writer = LineWriter::open(folder_ + "/none/lines");
  ASSERT_FALSE(writer.ok());
  EXPECT_NE(writer.error().message.find("/none/lines: No such file"), std::string::npos) << writer.error().message;
}

TEST_F(LineWriterTest, FollowsAFileThatWasRenamed) {
  auto writer = LineWriter::open(path_).value();
  writer->add("first");
  ASSERT_TRUE(eventually([&] { return content(path_) == "first\n"; }));
  std::filesystem::rename(path_, path_ + ".1");
  writer->add("second");
  EXPECT_TRUE(eventually([&] { return content(path_) == "second\n"; }));
  EXPECT_EQ(content(path_ + ".1"), "first\n");
}

TEST_F(LineWriterTest, R29AFullDiskCostsLinesAndNothingElse) {
  auto writer = LineWriter::open("/dev/full").value();
  writer->add("one");
  writer->add("two");
  EXPECT_TRUE(eventually([&] { return writer->dropped() == 2; })) << writer->dropped();
}

TEST_F(LineWriterTest, R29AReaderThatReadsNothingCostsLinesAndKeepsNobodyWaiting) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const int reader = open(path_.c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  {
    auto writer = LineWriter::open(path_).value();
    const std::string line(999, 'x');
    constexpr int kLines = 4000;  // four times what may wait, and the pipe
    for (int i = 0; i < kLines; ++i) writer->add(line);
    const uint64_t dropped = writer->dropped();
    EXPECT_GT(dropped, 1000u);
    EXPECT_LT(dropped, 3500u);
    // What came through is whole lines.
    std::string arrived(4096, '\0');
    ASSERT_TRUE(eventually([&] { return read(reader, arrived.data(), arrived.size()) == 4096; }));
    EXPECT_TRUE(arrived.starts_with(line + "\n"));
  }  // ends although nobody reads
  close(reader);
}

TEST_F(LineWriterTest, ThreadsMayAddAtOnce) {
  {
    auto writer = LineWriter::open(path_).value();
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) writer->add("line");
      });
    }
    for (auto& thread : threads) thread.join();
  }
  EXPECT_EQ(content(path_).size(), 4000 * 5u);
}

}  // namespace
}  // namespace sluice::obs
