#include "engine/expert_report.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "moe/expert_recorder.h"

namespace sluice::engine {
namespace {

using moe::ExpertRecorder;
using nlohmann::json;

// One of two ranks that divide four experts of a model whose second layer alone has some.
ExpertRecorder recorder(int32_t rank, moe::RecordMode mode = moe::RecordMode::kStat, bool reports = true) {
  ExpertRecorder made({.mode = mode}, {.tp_size = 2,
                                       .model_layers = 2,
                                       .logical = 4,
                                       .layers = {1},
                                       .own = {{2 * rank, 2 * rank + 1}},
                                       .reports = reports});
  made.start({0, 0});
  return made;
}

TEST(ExpertReportTest, PutsTheRanksOfAllInstancesTogether) {
  std::map<int64_t, std::string> records;
  for (const int64_t instance : {0, 1}) {
    ExpertRecorder first = recorder(0), second = recorder(1);
    first.add(1, {6, 2}, {});
    second.add(1, {0, 0}, {});
    first.add(2, {7, 5}, {});
    second.add(2, {4, 0}, {});
    second.add(3, {4, 100}, {});  // the first did not hear of the end before
    records[2 * instance] = first.take().dump();
    records[2 * instance + 1] = second.take().dump();
  }
  const auto report = merge_expert_records(records);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->mode, "stat");
  EXPECT_EQ(report->steps, 4);
  EXPECT_DOUBLE_EQ(report->balancedness, (0.5 + 1.0) / 2) << "8 and 0 tokens, then 4 and 4";
  EXPECT_EQ(report->logical_count, (std::vector<std::vector<int64_t>>{{0, 0, 0, 0}, {14, 10, 8, 200}}));
  EXPECT_EQ(report->rank_tokens, (std::map<int64_t, int64_t>{{0, 12}, {1, 104}, {2, 12}, {3, 104}}));
}

TEST(ExpertReportTest, RanksThatShareExpertsCountOnce) {
  ExpertRecorder first = recorder(0), same = recorder(0, moe::RecordMode::kStat, /*reports=*/false);
  first.add(1, {3, 1}, {});
  same.add(1, {3, 1}, {});
  const auto report = merge_expert_records({{0, first.take().dump()}, {1, same.take().dump()}});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->logical_count[1], (std::vector<int64_t>{3, 1, 0, 0}));
  EXPECT_EQ(report->rank_tokens.size(), 1u);
}

TEST(ExpertReportTest, WhatIsNoRecordIsRefused) {
  EXPECT_FALSE(merge_expert_records({{0, "{"}}).ok());
  EXPECT_FALSE(merge_expert_records({{0, R"({"mode":"stat"})"}}).ok());
  json wrong = recorder(0).take();
  wrong["layers"] = {7};
  EXPECT_FALSE(merge_expert_records({{0, wrong.dump()}}).ok());
}

TEST(ExpertReportTest, WritesTheSumsAndWithEachStepAFileOfEachRank) {
  const std::string folder = std::filesystem::temp_directory_path() / fmt::format("sluice-experts-{}", getpid());
  ExpertRecorder first = recorder(0, moe::RecordMode::kPerPass), second = recorder(1, moe::RecordMode::kPerPass);
  first.add(1, {3, 1}, {});
  second.add(1, {0, 4}, {});
  const std::map<int64_t, std::string> records{{0, first.take().dump()}, {1, second.take().dump()}};
  const auto report = merge_expert_records(records);
  ASSERT_TRUE(report.ok());
  const auto paths = write_expert_records(*report, records, folder + "/record");
  ASSERT_TRUE(paths.ok()) << paths.error().message;
  EXPECT_EQ(*paths,
            (std::vector<std::string>{folder + "/record.json", folder + "/record_0.json", folder + "/record_1.json"}));
  std::ifstream sums(paths->at(0)), rank(paths->at(2));
  const json written = json::parse(sums);
  EXPECT_EQ(written["logical_count"], json::parse("[[0,0,0,0],[3,1,0,4]]"));
  EXPECT_EQ(written["average_utilization_rate_over_window"], 1.0);
  EXPECT_EQ(json::parse(rank)["steps"][0]["counts"], json::parse("[[0,4]]"));
  std::filesystem::remove_all(folder);
  EXPECT_FALSE(write_expert_records(*report, records, "/proc/nowhere/record").ok());
}

}  // namespace
}  // namespace sluice::engine
