#include "engine/api/labelled_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class LabelledMetricsTest : public ApiTest {
 protected:
  LabelledMetricsTest() { options_.tokenizer_metrics_allowed_custom_labels = {"team", "app"}; }
  void serve_answers() {
    serve();
    answer_with("1");
  }
  HttpAnswer with_header(const std::string& header, const std::string& body) {
    return call("POST", "/generate", body, "Content-Type: application/json\r\n" + header + "\r\n");
  }
};

TEST_F(LabelledMetricsTest, WhatClientsSendIsOnTheMetricsOfTheirRequests) {
  serve_answers();
  const Json labels = {{"app", "chat"}, {"team", "red"}};
  for (const auto& [path, body] : {std::pair<std::string, Json>{"/generate", {{"text", "a"}}},
                                   {"/v1/completions", {{"prompt", "a"}}},
                                   {"/v1/responses", {{"input", "a"}}}}) {
    Json with = body;
    with["custom_labels"] = labels;
    EXPECT_EQ(post(path, with).status, 200) << path;
  }
  EXPECT_EQ(post("/generate", {{"text", "a"}}).status, 200);
  const std::string page = metrics_.render();
  const std::string mine = R"(model_name="tiny",team="red",app="chat")", none = R"(model_name="tiny",team="",app="")";
  EXPECT_THAT(page, HasSubstr("sglang:num_requests_total{" + mine + "} 3\n"));
  EXPECT_THAT(page, HasSubstr("sglang:num_requests_total{" + none + "} 1\n"));
  EXPECT_THAT(page, HasSubstr("sglang:cached_tokens_total{" + mine + R"(,cache_source="device"} 3)"));
  EXPECT_THAT(page, HasSubstr("sglang:time_to_first_token_seconds_count{" + mine + "} 3\n"));
  // What ranks measure has no labels of clients.
  EXPECT_THAT(page, HasSubstr("sglang:queue_time_seconds_count{model_name=\"tiny\",engine_type"));
}

TEST_F(LabelledMetricsTest, AHeaderNamesThemToo) {
  options_.tokenizer_metrics_custom_labels_header = "x-who";
  serve_answers();
  EXPECT_EQ(with_header(R"(X-Who: {"team": "red", "app": "chat", "unknown": "x"})", R"({"text": "a"})").status, 200);
  // The body is nearer to the request.
  EXPECT_EQ(
      with_header(R"(X-Who: {"team": "red", "app": "chat"})", R"({"text": "a", "custom_labels": {"team": "blue"}})")
          .status,
      200);
  const std::string page = metrics_.render();
  EXPECT_THAT(page, HasSubstr(R"(sglang:num_requests_total{model_name="tiny",team="red",app="chat"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(sglang:num_requests_total{model_name="tiny",team="blue",app="chat"} 1)"));
  for (const char* wrong : {"X-Who: red", "X-Who: [1]", R"(X-Who: {"team": 1})"}) {
    const auto answer = with_header(wrong, R"({"text": "a"})");
    EXPECT_EQ(answer.status, 400) << wrong;
    EXPECT_THAT(answer.body, HasSubstr("header x-who")) << wrong;
  }
}

TEST_F(LabelledMetricsTest, WhatIsNotAllowedIsRefusedByName) {
  serve_answers();
  for (const Json& wrong :
       {Json{{"model_name", "m"}}, Json{{"team", 1}}, Json("red"), Json{{"team", std::string(129, 'x')}}}) {
    const auto answer = post("/generate", {{"text", "a"}, {"custom_labels", wrong}});
    EXPECT_EQ(answer.status, 400) << wrong;
    EXPECT_THAT(answer.body, HasSubstr("custom_labels")) << wrong;
  }
  EXPECT_THAT(post("/generate", {{"text", "a"}, {"custom_labels", {{"x", "y"}}}}).body, HasSubstr("allows team, app"));
}

TEST_F(LabelledMetricsTest, WithoutAnyAllowedTheFieldIsRefusedAndTheHeaderIsNot) {
  options_.tokenizer_metrics_allowed_custom_labels = {};
  serve_answers();
  const auto answer = post("/v1/completions", {{"prompt", "a"}, {"custom_labels", {{"team", "red"}}}});
  EXPECT_EQ(answer.status, 400);
  EXPECT_THAT(answer.body, HasSubstr("--tokenizer-metrics-allowed-custom-labels"));
  EXPECT_EQ(with_header("X-Custom-Labels: {}", R"({"text": "a"})").status, 200);
  EXPECT_THAT(metrics_.render(), HasSubstr("sglang:num_requests_total{model_name=\"tiny\"} 1\n"));
}

// X6: whatever clients send, the number of series is bounded.
TEST(LabelledMetricsLimitTest, FurtherSetsOfValuesAreOther) {
  obs::Metrics metrics;
  const RankLabels ranks("m", 1, std::nullopt);
  metrics.declare(request_families(ranks, {"user"}));
  LabelledMetrics labelled(metrics, "m", ranks, real_clock(), {"user"});
  const auto series = [&] {
    const std::string page = metrics.render();
    return std::count(page.begin(), page.end(), '\n');
  };
  for (int i = 0; i < 1'000; ++i) labelled.of({"user " + std::to_string(i)})->requests.add();
  const auto then = series();
  for (int i = 0; i < 10'000; ++i) labelled.of({"late user " + std::to_string(i)})->requests.add();
  EXPECT_EQ(series(), then);
  labelled.of({"user 3"})->requests.add();
  EXPECT_EQ(labelled.of({"user 3"})->requests.value(), 2);
  EXPECT_EQ(labelled.of({std::string(kOther)})->requests.value(), 1'000 - kMostLabelSets + 10'000);
}

}  // namespace
}  // namespace sluice::engine
