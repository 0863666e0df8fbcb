#include "moe/expert_recorder.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::moe {
namespace {

using nlohmann::json;

// The first of two ranks that divide four experts, in layers 1 and 2 of a model of three.
ExpertRecorder recorder(RecordMode mode, int64_t steps = 1000) {
  return ExpertRecorder({.mode = mode, .steps = steps},
                        {.tp_size = 2, .model_layers = 3, .logical = 4, .layers = {1, 2}, .own = {{0, 1}, {0, 1}}});
}

TEST(ExpertRecorderTest, CountsWhatCameBetweenItsStartAndItsStop) {
  ExpertRecorder record = recorder(RecordMode::kStat);
  record.add(1, {9, 9, 9, 9}, {});
  record.start({10, 20, 30, 40});
  record.add(2, {11, 20, 32, 40}, {});
  record.add(3, {11, 23, 32, 44}, {});
  record.stop();
  record.add(4, {99, 99, 99, 99}, {});
  const json got = record.take();
  EXPECT_EQ(got["counts"], json::parse("[[1,3],[2,4]]"));
  EXPECT_EQ(got["steps"], json::parse(R"([{"step":2,"tokens":[1,2]},{"step":3,"tokens":[3,4]}])"));
  EXPECT_EQ(record.take()["steps"], json::array()) << "what was taken is forgotten";
}

TEST(ExpertRecorderTest, NothingWasCountedBeforeTheFirstStart) {
  EXPECT_EQ(recorder(RecordMode::kStat).take()["counts"], json::parse("[[0,0],[0,0]]"));
}

TEST(ExpertRecorderTest, KeepsTheLatestSteps) {
  ExpertRecorder record = recorder(RecordMode::kPerPass, 2);
  record.start({0, 0, 0, 0});
  for (int64_t step = 1; step <= 5; ++step) record.add(step, {step, 0, 0, 2 * step}, {});
  const json got = record.take();
  ASSERT_EQ(got["steps"].size(), 2u);
  EXPECT_EQ(got["steps"][0]["step"], 4);
  EXPECT_EQ(got["steps"][1]["counts"], json::parse("[[1,0],[0,2]]"));
  EXPECT_EQ(got["counts"], json::parse("[[2,0],[0,4]]"));
}

TEST(ExpertRecorderTest, KeepsTheExpertsOfEachToken) {
  ExpertRecorder record = recorder(RecordMode::kPerToken);
  record.start({0, 0, 0, 0});
  const std::vector<int32_t> ids{7, 8}, positions{0, 1}, experts{0, 1, 2, 3, 1, 0, 3, 2};
  record.add(1, {1, 1, 1, 1}, {.ids = ids, .positions = positions, .experts = experts, .top_k = 2});
  const json step = record.take()["steps"][0];
  EXPECT_EQ(step["input_ids"], json(ids));
  EXPECT_EQ(step["positions"], json(positions));
  EXPECT_EQ(step["topk_ids_of_layer"], json::parse("[[[0,1],[2,3]],[[1,0],[3,2]]]"));
}

TEST(ExpertRecorderTest, TokensHaveABoundAndCountsStay) {
  ExpertRecorder record({.mode = RecordMode::kPerToken, .steps = -1, .most_choices = 2 * 8},
                        {.logical = 4, .layers = {1, 2}, .own = {{0, 1}, {0, 1}}});
  record.start({0, 0, 0, 0});
  const std::vector<int32_t> ids(2), experts(2 * ids.size() * 2);
  for (int64_t step = 1; step <= 3; ++step) {
    record.add(step, {step, 0, 0, 0}, {.ids = ids, .positions = ids, .experts = experts, .top_k = 2});
  }
  const std::vector<int32_t> many(10), theirs(2 * many.size() * 2);
  record.add(4, {4, 0, 0, 0}, {.ids = many, .positions = many, .experts = theirs, .top_k = 2});
  record.add(5, {5, 0, 0, 0}, {.ids = ids, .positions = ids, .experts = experts, .top_k = 2});
  const json got = record.take();
  ASSERT_EQ(got["steps"].size(), 5u) << "one that has too many tokens by itself wipes nothing but them";
  for (const json& step : got["steps"]) {
    EXPECT_EQ(step["input_ids"].size(), step["step"] == 5 ? 2u : 0u) << step;
    EXPECT_EQ(step["topk_ids_of_layer"].size(), 2u);
  }
  EXPECT_EQ(got["counts"], json::parse("[[5,0],[0,0]]"));
}

TEST(ExpertRecorderTest, CountsHaveABound) {
  ExpertRecorder record({.mode = RecordMode::kStat, .steps = -1, .most_counts = 2 * 4},
                        {.logical = 4, .layers = {1, 2}, .own = {{0, 1}, {0, 1}}});
  record.start({0, 0, 0, 0});
  for (int64_t step = 1; step <= 3; ++step) record.add(step, {step, 0, 0, 0}, {});
  const json steps = record.take()["steps"];
  ASSERT_EQ(steps.size(), 2u);
  EXPECT_EQ(steps[0]["step"], 2);
}

TEST(ExpertRecorderTest, ModesHaveNames) {
  EXPECT_EQ(*record_mode("stat"), RecordMode::kStat);
  EXPECT_EQ(*record_mode("stat_approx"), RecordMode::kStat);
  EXPECT_EQ(*record_mode("per_pass"), RecordMode::kPerPass);
  EXPECT_EQ(*record_mode("per_token"), RecordMode::kPerToken);
  EXPECT_FALSE(record_mode("loud").ok());
}

}  // namespace
}  // namespace sluice::moe
