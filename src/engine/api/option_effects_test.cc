// From a flag to what clients see, where that needs no rank process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/api/api_fixture.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class ServerOptionsTest : public ApiTest {
 protected:
  // Called once by a test.
  void serve_with(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "--model-path=tiny");
    const auto parsed = engine_option_table().parse(flags, true);
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    options_ = *parsed;
    serve();
  }
  static std::string refusal(std::vector<std::string> flags) {
    flags.insert(flags.begin(), "--model-path=tiny");
    const auto checked = check_engine_options(*engine_option_table().parse(flags, true));
    return checked.ok() ? "" : checked.error().message;
  }
};

TEST_F(ServerOptionsTest, WeightVersion) {
  serve_with({"--weight-version=step-9"});
  answer_with("yes");
  EXPECT_EQ(call("GET", "/model_info").json()["weight_version"], "step-9");
  EXPECT_EQ(post("/generate", {{"text", "a"}}).json()["meta_info"]["weight_version"], "step-9");
}

TEST_F(ServerOptionsTest, AllowAutoTruncate) {
  serve_with({"--allow-auto-truncate"});
  answer_with("x");
  EXPECT_EQ(post("/generate", {{"input_ids", std::vector<int32_t>(3000, 5)}}).status, 200);
  EXPECT_EQ(backend_->submitted()[0].first.input_ids.size(), 2041u);
}

TEST_F(ServerOptionsTest, StreamInterval) {
  serve_with({"--stream-interval=7"});
  answer_with("x");
  EXPECT_EQ(post("/generate", {{"text", "hi"}, {"stream", true}}).status, 200);
  EXPECT_EQ(backend_->submitted()[0].first.stream_interval, 7);
}

TEST_F(ServerOptionsTest, StreamOutput) {
  serve_with({"--stream-output"});
  answer_with("hello world");
  std::vector<int32_t> all;
  const auto events = post("/generate", {{"text", "hi"}, {"stream", true}}).events();
  for (size_t i = 0; i + 1 < events.size(); ++i) {
    const auto part = Json::parse(events[i])["output_ids"].get<std::vector<int32_t>>();
    all.insert(all.end(), part.begin(), part.end());
  }
  auto expected = ids("hello world");
  expected.push_back(2);
  EXPECT_EQ(all, expected) << "each id once";
}

TEST_F(ServerOptionsTest, DisableCacheReport) {
  serve_with({"--disable-cache-report"});
  answer_with("x");
  const auto answer = post("/v1/completions", {{"model", "tiny"}, {"prompt", "hi"}});
  ASSERT_EQ(answer.status, 200) << answer.body;
  EXPECT_TRUE(answer.json()["usage"].value("prompt_tokens_details", Json()).is_null()) << answer.body;
}

TEST_F(ServerOptionsTest, EnableCacheReport) {
  serve_with({"--enable-cache-report"});
  answer_with("x");
  const auto answer = post("/v1/completions", {{"model", "tiny"}, {"prompt", "hi"}});
  EXPECT_EQ(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 1) << answer.body;
  EXPECT_THAT(refusal({"--enable-cache-report", "--disable-cache-report"}), HasSubstr("exclude each other"));
}

TEST_F(ServerOptionsTest, ApiKey) {
  serve_with({"--api-key=secret"});
  EXPECT_EQ(call("GET", "/model_info").status, 401);
  EXPECT_EQ(call("GET", "/model_info", "", "Authorization: Bearer secret\r\n").status, 200);
}

TEST_F(ServerOptionsTest, AdminApiKey) {
  serve_with({"--api-key=secret", "--admin-api-key=chief"});
  EXPECT_EQ(call("POST", "/update_weight_version", R"({"new_version":"x"})",
                 "Content-Type: application/json\r\nAuthorization: Bearer secret\r\n")
                .status,
            401);
  EXPECT_EQ(call("POST", "/update_weight_version", R"({"new_version":"x"})",
                 "Content-Type: application/json\r\nAuthorization: Bearer chief\r\n")
                .status,
            200);
}

TEST_F(ServerOptionsTest, EnableMetrics) {
  serve_with({"--enable-metrics"});
  EXPECT_THAT(call("GET", "/metrics").body, HasSubstr("sglang:num_running_reqs"));
}

TEST_F(ServerOptionsTest, WithoutEnableMetricsThePageSaysWhichFlagIsMissing) {
  serve_with({});
  const auto answer = call("GET", "/metrics");
  EXPECT_EQ(answer.status, 404);
  EXPECT_THAT(answer.body, HasSubstr("--enable-metrics"));
}

TEST_F(ServerOptionsTest, IsEmbedding) {
  serve_with({"--is-embedding"});
  EXPECT_EQ(call("GET", "/model_info").json()["is_generation"], false);
}

TEST_F(ServerOptionsTest, EnableReturnHiddenStates) {
  serve_with({"--enable-return-hidden-states"});
  answer_with("x");
  EXPECT_EQ(post("/generate", {{"text", "a"}, {"return_hidden_states", true}}).status, 200);
  EXPECT_TRUE(backend_->submitted()[0].first.return_hidden_states);
}

TEST_F(ServerOptionsTest, MoeRunnerBackend) {
  serve_with({"--moe-runner-backend=triton"});
  EXPECT_EQ(call("GET", "/server_info").json()["moe_runner_backend"], "triton") << "shown, and nothing else";
}

}  // namespace
}  // namespace sluice::engine
