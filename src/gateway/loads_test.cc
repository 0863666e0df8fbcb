#include "gateway/loads.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

TEST(LoadsDocumentTest, HoldsTheShapesOfBothGenerations) {
  const std::vector<WorkerReport> reports = {
      {"http://a:1",
       LoadReport{.document = R"({"loads":[{"dp_rank":0,"num_running_reqs":2,"num_waiting_reqs":1,"token_usage":0.5},)"
                              R"({"dp_rank":1,"num_running_reqs":3,"num_waiting_reqs":0,"token_usage":0.1}]})",
                  .used_tokens = 70}},
      {"http://b:1", std::nullopt}};
  const auto document = Json::parse(loads_document(reports, 123));
  EXPECT_EQ(document["workers"][0]["worker"], "http://a:1");
  EXPECT_EQ(document["workers"][0]["load"], 70);
  EXPECT_EQ(document["workers"][0]["details"]["loads"].size(), 2u);
  EXPECT_EQ(document["workers"][1]["load"], -1) << "unknown";
  EXPECT_EQ(document["timestamp"], 123);
  EXPECT_EQ(document["dp_rank_count"], 2);
  EXPECT_EQ(document["loads"][1]["worker"], "http://a:1");
  EXPECT_EQ(document["loads"][1]["dp_rank"], 1);
  EXPECT_EQ(document["aggregate"]["total_running_reqs"], 5);
  EXPECT_EQ(document["aggregate"]["total_reqs"], 6);
  EXPECT_DOUBLE_EQ(document["aggregate"]["avg_token_usage"], 0.3);
}

TEST(LoadsDocumentTest, SurvivesOddReports) {
  for (const char* odd : {"null", "{}", R"({"loads":7})", R"({"loads":[null,"x",[]]})", "not json"}) {
    const auto text = loads_document({{"w", LoadReport{.document = odd, .used_tokens = 1}}}, 0);
    EXPECT_EQ(Json::parse(text)["dp_rank_count"], 0) << odd;
  }
  EXPECT_EQ(Json::parse(loads_document({}, 0))["aggregate"]["total_reqs"], 0);
}

}  // namespace
}  // namespace sluice::gateway
