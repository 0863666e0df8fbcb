#include "engine/expert_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

EngineOptions parse(std::vector<std::string> flags) {
  flags.insert(flags.begin(), "--model=m");
  const auto options = engine_option_table().parse(flags, true);
  EXPECT_TRUE(options.ok()) << options.error().message;
  return *options;
}

TEST(ExpertOptionsTest, TheRecorderIsOffUnlessAModeIsGiven) {
  EXPECT_FALSE((*expert_recorder_of(parse({}))).has_value());
  const auto recorder = *expert_recorder_of(parse({"--expert-distribution-recorder-mode=per_pass"}));
  ASSERT_TRUE(recorder.has_value());
  EXPECT_EQ(recorder->mode, moe::RecordMode::kPerPass);
  EXPECT_EQ(recorder->steps, 1000);
  const auto all = *expert_recorder_of(
      parse({"--expert-distribution-recorder-mode=stat", "--expert-distribution-recorder-buffer-size=-1"}));
  EXPECT_EQ(all->steps, -1);
  const auto alone = check_engine_options(parse({"--expert-distribution-recorder-buffer-size=5"}));
  ASSERT_FALSE(alone.ok());
  EXPECT_THAT(alone.error().message, HasSubstr("needs --expert-distribution-recorder-mode"));
  EXPECT_FALSE(check_engine_options(
                   parse({"--expert-distribution-recorder-mode=stat", "--expert-distribution-recorder-buffer-size=0"}))
                   .ok());
}

TEST(ExpertOptionsTest, CopiesAreChosenStaticallyByDefault) {
  EngineOptions plain = parse({});
  EXPECT_TRUE(adjust_experts(plain)->empty());
  EXPECT_TRUE(expert_placement_of(plain).trivial());

  EngineOptions copies = parse({"--ep-num-redundant-experts=4"});
  const auto lines = adjust_experts(copies);
  ASSERT_TRUE(lines.ok());
  ASSERT_EQ(lines->size(), 1u);
  EXPECT_THAT(lines->front(), HasSubstr("--ep-dispatch-algorithm is static"));
  EXPECT_EQ(expert_placement_of(copies).redundant, 4);
  EXPECT_EQ(expert_placement_of(copies).choice, moe::CopyChoice::kStatic);

  EngineOptions dynamic = parse({"--ep-num-redundant-experts=4", "--ep-dispatch-algorithm=dynamic"});
  EXPECT_TRUE(adjust_experts(dynamic)->empty());
  EXPECT_EQ(expert_placement_of(dynamic).choice, moe::CopyChoice::kDynamic);
}

TEST(ExpertOptionsTest, ALocationIsReadFromItsFileOrStandsThere) {
  const std::string path = std::filesystem::temp_directory_path() / fmt::format("sluice-location-{}.json", getpid());
  std::ofstream(path) << R"({"logical_count": [[1, 2]]})";
  EngineOptions file = parse({"--init-expert-location=" + path, "--eplb-algorithm=deepseek"});
  const auto read = adjust_experts(file);
  std::filesystem::remove(path);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(expert_placement_of(file).location, R"({"logical_count": [[1, 2]]})");
  EXPECT_EQ(expert_placement_of(file).algorithm, "deepseek");

  const std::string json = R"({"physical_to_logical_map": [[1, 0]]})";
  EngineOptions given = parse({"--init-expert-location=" + json});
  EXPECT_TRUE(adjust_experts(given).ok());
  EXPECT_EQ(expert_placement_of(given).location, json);

  const auto message = [](std::vector<std::string> flags) {
    EngineOptions options = parse(std::move(flags));
    const auto adjusted = adjust_experts(options);
    return adjusted.ok() ? std::string() : adjusted.error().message;
  };
  EXPECT_THAT(message({"--init-expert-location=/no/such/file.json"}), HasSubstr("a file that can be read"));
  EXPECT_THAT(message({"--init-expert-location=/tmp/counts.pt"}), HasSubstr("files of torch are not read"));
  EXPECT_THAT(message({"--eplb-algorithm=deepseek"}), HasSubstr("balances a logical_count"));
}

}  // namespace
}  // namespace sluice::engine
