#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "engine/api/api_fixture.h"
#include "moe/expert_recorder.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class ExpertsApiTest : public ApiTest {
 protected:
  void SetUp() override { ASSERT_EQ(setenv("SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR", folder_.c_str(), 1), 0); }
  void TearDown() override {
    unsetenv("SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR");
    std::filesystem::remove_all(folder_);
  }
  const std::string folder_ =
      std::filesystem::temp_directory_path() / fmt::format("sluice-experts-api-{}", static_cast<int>(getpid()));
};

TEST_F(ExpertsApiTest, ARecordOfAllRanksIsWrittenWhereTheVariableSays) {
  serve();
  EXPECT_EQ(call("POST", "/start_expert_distribution_record").body, "Start recording expert distribution.\n");
  EXPECT_EQ(call("GET", "/stop_expert_distribution_record").body, "Stop recording expert distribution.\n");
  moe::ExpertRecorder record({}, {.model_layers = 1, .logical = 2, .layers = {0}, .own = {{0, 1}}});
  record.start({0, 0});
  record.add(1, {3, 5}, {});
  backend_->control_answers[ControlKind::kRecordExperts] = {{0, record.take().dump()}};
  const auto dumped = call("POST", "/dump_expert_distribution_record");
  EXPECT_EQ(dumped.status, 200) << dumped.body;
  EXPECT_THAT(dumped.body, HasSubstr("Balancedness 1.0000 over 1 steps"));
  const auto files = std::filesystem::directory_iterator(folder_);
  ASSERT_EQ(std::distance(begin(files), end(files)), 1);
  const auto path = std::filesystem::directory_iterator(folder_)->path();
  EXPECT_THAT(path.filename().string(), HasSubstr("expert_distribution_recorder_"));
  EXPECT_THAT(dumped.body, HasSubstr(path.string()));
  std::ifstream file(path);
  EXPECT_EQ(Json::parse(file)["logical_count"], Json::parse("[[3,5]]"));
  std::vector<std::string> commands;
  for (const auto& [kind, text] : backend_->controls()) commands.push_back(text);
  EXPECT_EQ(commands, (std::vector<std::string>{"start", "stop", "dump"}));
}

TEST_F(ExpertsApiTest, ARankThatDoesNotRecordSaysWhy) {
  serve();
  backend_->control_results[ControlKind::kRecordExperts] = Error{ErrorCode::kUnavailable, "rank 0: no experts"};
  for (const char* path :
       {"/start_expert_distribution_record", "/stop_expert_distribution_record", "/dump_expert_distribution_record"}) {
    const auto refused = call("POST", path);
    EXPECT_EQ(refused.status, 400);
    EXPECT_THAT(refused.body, HasSubstr("rank 0: no experts"));
  }
}

}  // namespace
}  // namespace sluice::engine
