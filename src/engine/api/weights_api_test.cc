#include "engine/api/weights_api.h"

#include <gmock/gmock.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

using WeightsApiTest = ApiTest;

TEST_F(WeightsApiTest, ARowOfEachRankIsTheAnswer) {
  options_.dp_size = 2;
  serve();
  backend_->control_answers[ControlKind::kReadWeight] = {{0, "[[1.0]]"}, {1, "[[2.0]]"}};
  const auto answer = post("/get_weights_by_name", {{"name", "model.norm.weight"}, {"truncate_size", 7}});
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.body, "[[[1.0]],[[2.0]]]");
  EXPECT_EQ(backend_->controls().back().second, R"({"name":"model.norm.weight","rows":7})");
}

TEST_F(WeightsApiTest, OneRankAnswersByItself) {
  serve();
  backend_->control_answers[ControlKind::kReadWeight] = {{0, "[1.0]"}};
  EXPECT_EQ(call("GET", "/get_weights_by_name", R"({"name":"x"})").body, "[1.0]");
  EXPECT_EQ(backend_->controls().back().second, R"({"name":"x","rows":100})");
}

TEST_F(WeightsApiTest, WhatIsWrongIsNamed) {
  serve();
  EXPECT_THAT(post("/get_weights_by_name", Json::object()).body, HasSubstr("name must be a tensor's name"));
  EXPECT_THAT(post("/get_weights_by_name", {{"name", "x"}, {"truncate_size", 0}}).body, HasSubstr("truncate_size"));
  backend_->control_results[ControlKind::kReadWeight] = Error{ErrorCode::kUnavailable, "rank 0: no tensor x"};
  const auto answer = post("/get_weights_by_name", {{"name", "x"}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("Get parameter by name failed: rank 0: no tensor x"));
}

TEST_F(WeightsApiTest, ASilentRankIsNoFaultOfTheRequest) {
  serve();
  backend_->control_results[ControlKind::kReadWeight] = Error{ErrorCode::kTimeout, "rank 1 did not answer"};
  const auto answer = post("/get_weights_by_name", {{"name", "x"}});
  EXPECT_EQ(answer.status, 408) << "as of every control request";
  EXPECT_THAT(answer.body, HasSubstr("rank 1 did not answer"));
}

}  // namespace
}  // namespace sluice::engine
