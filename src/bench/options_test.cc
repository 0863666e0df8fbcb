#include "bench/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/api.h"
#include "bench/progress.h"

namespace sluice::bench {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using Json = nlohmann::json;

Result<void> check(const std::vector<std::string>& arguments) {
  const auto options = bench_option_table().parse(arguments);
  if (!options.ok()) return options.error();
  return validate(*options);
}

TEST(BenchOptionsTest, DefaultsAreThoseOfBenchServing) {
  const BenchOptions options = bench_option_table().defaults();
  EXPECT_EQ(options.backend, "sglang");
  EXPECT_EQ(options.num_prompts, 1000);
  EXPECT_TRUE(std::isinf(options.request_rate));
  EXPECT_EQ(options.seed, 1);
  EXPECT_EQ(options.warmup_requests, 1);
  EXPECT_EQ(options.gsp_num_groups * options.gsp_prompts_per_group, 1024);
  EXPECT_TRUE(std::isinf(bench_option_table().parse({"--request-rate", "inf"})->request_rate));
}

TEST(BenchOptionsTest, WhatIsNotBuiltIsRejectedByName) {
  for (const char* flag : {"--profile", "--lora-name", "--use-trace-timestamps"}) {
    const auto result = check({flag, "x"});
    ASSERT_FALSE(result.ok()) << flag;
    EXPECT_EQ(result.error().code, ErrorCode::kBadOption);
    EXPECT_THAT(result.error().message, HasSubstr(flag));
  }
  EXPECT_THAT(check({"--backend", "trt"}).error().message, HasSubstr("sglang-oai"));
}

TEST(BenchOptionsTest, CombinationsThatCannotBeAreRejected) {
  EXPECT_THAT(check({}).error().message, HasSubstr("--dataset-path"));  // the default is sharegpt
  EXPECT_THAT(check({"--dataset-name", "generated-shared-prefix", "--gsp-num-turns", "2"}).error().message,
              HasSubstr("chat backend"));
  EXPECT_THAT(check({"--dataset-name", "random", "--tokenize-prompt"}).error().message, HasSubstr("--tokenizer"));
  EXPECT_THAT(check({"--dataset-name", "random", "--return-logprob", "--backend", "vllm"}).error().message,
              HasSubstr("--extra-request-body"));
  EXPECT_TRUE(check({"--dataset-name", "random"}).ok());
}

TEST(RequestBodyTest, OfGenerateIsThatOfBenchServing) {
  const RequestForm form;
  EXPECT_EQ(Json::parse(request_body(form, {.messages = {"a \"b\"\n\x01"}, .output_len = 7})),
            Json::parse(R"({"text":"a \"b\"\n\u0001","stream":true,
                            "sampling_params":{"temperature":0.0,"max_new_tokens":7,"ignore_eos":true}})"));
  EXPECT_EQ(Json::parse(request_body(form, {.ids = {3, 4}, .output_len = 7}))["input_ids"], Json::parse("[3,4]"));
}

TEST(RequestBodyTest, OfOpenAiAsksForTheUsage) {
  RequestForm form{.api = Api::kCompletions, .model = "m", .ignore_eos = false};
  EXPECT_EQ(Json::parse(request_body(form, {.messages = {"p"}, .output_len = 7})),
            Json::parse(R"({"model":"m","prompt":"p","temperature":0.0,"max_tokens":7,"stream":true,"ignore_eos":false,
                            "stream_options":{"include_usage":true}})"));
  form = {.api = Api::kChat, .model = "m", .stream = false};
  EXPECT_EQ(Json::parse(request_body(form, {.messages = {"q", "a", "r"}, .output_len = 7})),
            Json::parse(R"({"model":"m","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},
                            {"role":"user","content":"r"}],"temperature":0.0,"max_tokens":7,"stream":false,
                            "ignore_eos":true})"));
}

TEST(RequestBodyTest, ExtraMembersReplaceOurs) {
  RequestForm form;
  ASSERT_TRUE(add_extra_body(form, R"({"sampling_params":{"temperature":1},"rid":"x"})").ok());
  const std::string body = request_body(form, {.messages = {"p"}, .output_len = 7});
  EXPECT_EQ(Json::parse(body),
            Json::parse(R"({"text":"p","stream":true,"sampling_params":{"temperature":1},"rid":"x"})"));
  EXPECT_EQ(body.find("max_new_tokens"), std::string::npos);
  EXPECT_FALSE(add_extra_body(form, "[1]").ok());
  EXPECT_FALSE(add_extra_body(form, "{").ok());
}

TEST(ProgressTest, LooksLikeTqdm) {
  EXPECT_EQ(progress_line({.total = 1000, .done = 500, .failed = 0, .elapsed = 10s}, 60),
            " 50%|██████████          | 500/1000 [00:10<00:10, 50.00it/s]");
  EXPECT_EQ(progress_line({.total = 10, .done = 0, .failed = 0, .elapsed = 0s}, 200),
            "  0%|" + std::string(40, ' ') + "| 0/10 [00:00<?, ?it/s]");
  EXPECT_THAT(progress_line({.total = 10, .done = 10, .failed = 3, .elapsed = 2h}, 200), HasSubstr(", 3 failed"));
  EXPECT_EQ(progress_line({.total = 10, .done = 1, .failed = 0, .elapsed = 1s}, 12).size(), 12u);
}

}  // namespace
}  // namespace sluice::bench
