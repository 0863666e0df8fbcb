#include "base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace sluice::log {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

class LogTest : public ::testing::Test {
 protected:
  void TearDown() override { ASSERT_TRUE(init({}).ok()); }

  static std::string written_by(const std::function<void()>& what) {
    ::testing::internal::CaptureStderr();
    what();
    return ::testing::internal::GetCapturedStderr();
  }
};

TEST_F(LogTest, TextLinesCarryUtcTimeLevelAndComponent) {
  ASSERT_TRUE(init({}).ok());
  const auto line = written_by([] { SLUICE_LOG(warn, "gateway/health", "worker {} is gone", 3); });
  EXPECT_THAT(
      line, MatchesRegex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z warn  gateway/health: worker 3 is gone\n"));
}

TEST_F(LogTest, AClientCannotForgeALine) {
  const auto line = written_by([] { SLUICE_LOG(info, "x", "{}", "a\nb\x1b[2J"); });
  EXPECT_THAT(line, HasSubstr("a\\nb\\x1b[2J\n"));
}

TEST_F(LogTest, JsonLinesAreObjectsEvenWithBrokenUtf8) {
  ASSERT_TRUE(init({.json = true}).ok());
  const auto line = written_by([] { SLUICE_LOG(error, "x", "say \"{}\"", "\xff\n"); });
  const auto fields = nlohmann::json::parse(line);
  EXPECT_EQ(fields["level"], "error");
  EXPECT_EQ(fields["component"], "x");
  EXPECT_THAT(std::string(fields["message"]), HasSubstr("say \""));
}

TEST_F(LogTest, LevelsBelowTheChosenOneAreNotWritten) {
  ASSERT_TRUE(init({.level = "warn"}).ok());
  EXPECT_EQ(written_by([] { SLUICE_LOG(info, "x", "quiet"); }), "");
  EXPECT_FALSE(init({.level = "loud"}).ok());
}

TEST_F(LogTest, LinesCanGoElsewhere) {
  std::vector<std::string> lines;
  redirect([&](std::string_view line) { lines.emplace_back(line); });
  EXPECT_EQ(written_by([] { SLUICE_LOG(info, "x", "here"); }), "");
  redirect({});
  EXPECT_THAT(written_by([] { SLUICE_LOG(info, "x", "there"); }), HasSubstr("x: there\n"));
  EXPECT_THAT(lines, ::testing::ElementsAre(HasSubstr("x: here")));
}

TEST_F(LogTest, AlsoWritesAFileInTheFolder) {
  const auto dir = std::filesystem::temp_directory_path() / fmt::format("sluice-log-test-{}", ::getpid());
  ASSERT_TRUE(init({.dir = dir.string()}).ok());
  written_by([] { SLUICE_LOG(info, "x", "kept"); });
  std::stringstream text;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) text << std::ifstream(entry.path()).rdbuf();
  EXPECT_THAT(text.str(), HasSubstr("x: kept"));
  ASSERT_TRUE(init({}).ok());
  std::filesystem::remove_all(dir);
}

TEST(RateLimitTest, LetsOneLineThroughPerPeriodAndCountsTheRest) {
  RateLimit limit;
  uint64_t held_back = 0;
  EXPECT_TRUE(limit.due(1000, 100, held_back));
  EXPECT_EQ(held_back, 0u);
  EXPECT_FALSE(limit.due(1050, 100, held_back));
  EXPECT_FALSE(limit.due(1099, 100, held_back));
  EXPECT_TRUE(limit.due(1100, 100, held_back));
  EXPECT_EQ(held_back, 2u);
}

}  // namespace
}  // namespace sluice::log
