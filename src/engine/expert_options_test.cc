#include "engine/expert_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

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

TEST(ExpertOptionsTest, WhatLowLatencyTakesIsADecodeBatch) {
  unsetenv("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK");
  const std::vector<std::string> deepep{"--tp=4", "--dp-size=2", "--enable-dp-attention", "--moe-a2a-backend=deepep"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), deepep.begin(), deepep.end());
    return parse(std::move(more));
  };
  // Two ranks of an attention group have half of its tokens each.
  EngineOptions slab = with({"--deepep-mode=low_latency", "--max-running-requests=600", "--chunked-prefill-size=256"});
  const auto lines = adjust_experts(slab);
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  ASSERT_EQ(lines->size(), 1u);
  EXPECT_THAT(lines->front(), HasSubstr("--max-running-requests 600 -> 256"));
  EXPECT_EQ(slab.max_running_requests, 256);
  EXPECT_EQ(deepep_of(slab).mode, moe::DeepEpMode::kLowLatency);
  EXPECT_EQ(deepep_of(slab).capacity, 128);

  // The default: what does not fit goes by exact counts, and the slab has room for no more than decodes can need.
  EngineOptions automatic = with({"--max-running-requests=600"});
  EXPECT_TRUE(adjust_experts(automatic)->empty());
  EXPECT_EQ(automatic.max_running_requests, 600);
  EXPECT_EQ(deepep_of(automatic).mode, moe::DeepEpMode::kAuto);
  EXPECT_EQ(deepep_of(automatic).capacity, 128);
  EngineOptions few = with({"--max-running-requests=9"});
  EXPECT_TRUE(adjust_experts(few)->empty());
  EXPECT_EQ(deepep_of(few).capacity, 5);

  EngineOptions normal = with({"--deepep-mode=normal", "--max-running-requests=600"});
  EXPECT_TRUE(adjust_experts(normal)->empty());
  EXPECT_EQ(deepep_of(normal).mode, moe::DeepEpMode::kNormal);

  EngineOptions prefills = with({"--deepep-mode=low_latency", "--chunked-prefill-size=300"});
  const auto refused = adjust_experts(prefills);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("256 of an attention group, and steps have up to 300"));

  setenv("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", "150", 1);
  EngineOptions fits = with({"--deepep-mode=low_latency", "--chunked-prefill-size=300"});
  EXPECT_TRUE(adjust_experts(fits).ok());
  unsetenv("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK");
  const auto elsewhere = engine_options_from_json(engine_options_to_json(fits));
  EXPECT_EQ(deepep_of(*elsewhere).capacity, 150) << "on a host with another environment";
  for (const char* wrong : {"0", "1025", "many", "12x"}) {
    setenv("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", wrong, 1);
    EngineOptions options = with({"--deepep-mode=auto"});
    EXPECT_FALSE(adjust_experts(options).ok()) << wrong;
  }
  EngineOptions flag = with({"--deepep-num-max-dispatch-tokens-per-rank=64"});
  EXPECT_TRUE(adjust_experts(flag).ok()) << "instead of the variable";
  EXPECT_EQ(deepep_of(flag).capacity, 64);
  unsetenv("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK");
  EngineOptions unused = with({"--deepep-mode=normal", "--deepep-num-max-dispatch-tokens-per-rank=64"});
  EXPECT_THAT(adjust_experts(unused).error().message, HasSubstr("needs --moe-a2a-backend deepep and --deepep-mode"));
}

TEST(ExpertOptionsTest, RowsGoToExpertsInFp8WhereTheFlagOrTheVariableSaysSo) {
  const std::vector<std::string> deepep{"--tp=2", "--moe-a2a-backend=deepep"};
  const auto settled = [&](std::vector<std::string> more, const char* variable) {
    variable == nullptr ? unsetenv("SGLANG_DEEPEP_BF16_DISPATCH") : setenv("SGLANG_DEEPEP_BF16_DISPATCH", variable, 1);
    EngineOptions options = parse(std::move(more));
    const auto lines = adjust_experts(options);
    unsetenv("SGLANG_DEEPEP_BF16_DISPATCH");
    if (!lines.ok()) return lines.error().message;
    return std::string(deepep_of(options).fp8 ? "fp8" : "whole");
  };
  EXPECT_EQ(settled(deepep, nullptr), "whole");
  EXPECT_EQ(settled(deepep, "1"), "whole");
  EXPECT_EQ(settled(deepep, "0"), "fp8");
  EXPECT_THAT(settled(deepep, "yes"), HasSubstr("SGLANG_DEEPEP_BF16_DISPATCH must be 1, 0, true or false, not 'yes'"));
  std::vector<std::string> flag = deepep;
  flag.emplace_back("--deepep-dispatch-dtype=fp8_e4m3");
  EXPECT_EQ(settled(flag, "1"), "fp8");
  EXPECT_EQ(settled({}, "0"), "whole") << "nothing is dispatched";
  EXPECT_THAT(settled({"--deepep-dispatch-dtype=fp8_e4m3"}, nullptr), HasSubstr("is of --moe-a2a-backend deepep"));
}

TEST(ExpertOptionsTest, TwoBatchOverlapWantsRowsThatAreSent) {
  EngineOptions plain = parse({"--tp=2", "--moe-a2a-backend=deepep"});
  EXPECT_TRUE(adjust_experts(plain)->empty());
  EXPECT_FALSE(overlaps(plain));
  EXPECT_FALSE(split_threshold_of(plain).has_value());
  EngineOptions hosts = parse({"--tp=2", "--nnodes=2", "--dist-init-addr=h:1", "--moe-a2a-backend=deepep"});
  EXPECT_TRUE(overlaps(hosts)) << "shared experts";
  EXPECT_FALSE(split_threshold_of(hosts).has_value());

  EngineOptions single = parse({"--tp=2", "--moe-a2a-backend=deepep", "--enable-single-batch-overlap"});
  EXPECT_TRUE(adjust_experts(single)->empty());
  EXPECT_TRUE(overlaps(single)) << "on one host too";
  EXPECT_FALSE(split_threshold_of(single).has_value());

  EngineOptions split = parse(
      {"--tp=2", "--moe-a2a-backend=deepep", "--enable-two-batch-overlap", "--tbo-token-distribution-threshold=0.3"});
  EXPECT_TRUE(adjust_experts(split)->empty());
  EXPECT_TRUE(overlaps(split));
  EXPECT_EQ(split_threshold_of(split), 0.3);

  EngineOptions unsaid = parse({"--tp=2", "--moe-a2a-backend=deepep", "--enable-two-batch-overlap"});
  EXPECT_EQ(split_threshold_of(unsaid), 0.48);
  EngineOptions unused = parse({"--tp=2", "--moe-a2a-backend=deepep", "--tbo-token-distribution-threshold=0.3"});
  const auto no_effect = adjust_experts(unused);
  ASSERT_FALSE(no_effect.ok());
  EXPECT_EQ(no_effect.error().message, "--tbo-token-distribution-threshold needs --enable-two-batch-overlap");

  EngineOptions alone = parse({"--moe-a2a-backend=deepep", "--enable-two-batch-overlap"});
  const auto lines = adjust_experts(alone);
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  ASSERT_EQ(lines->size(), 1u);
  EXPECT_THAT(lines->front(), HasSubstr("--enable-two-batch-overlap is off"));
  EXPECT_FALSE(split_threshold_of(alone).has_value());

  EngineOptions alone_beside = parse({"--moe-a2a-backend=deepep", "--enable-single-batch-overlap"});
  EXPECT_EQ(*adjust_experts(alone_beside),
            std::vector<std::string>{"--enable-single-batch-overlap is off: one rank sends nothing"});
  EXPECT_FALSE(overlaps(alone_beside));
  EngineOptions no_rows = parse({"--tp=2", "--enable-single-batch-overlap"});
  EXPECT_EQ(adjust_experts(no_rows).error().message,
            "--enable-single-batch-overlap needs --moe-a2a-backend deepep, which is none");

  EngineOptions rounded = parse({"--moe-a2a-backend=deepep", "--deepep-dispatch-dtype=fp8_e4m3"});
  const auto said = adjust_experts(rounded);
  ASSERT_TRUE(said.ok()) << said.error().message;
  EXPECT_EQ(*said, std::vector<std::string>{"--deepep-dispatch-dtype has no effect: one rank sends nothing"});

  EngineOptions none = parse({"--tp=2", "--enable-two-batch-overlap"});
  const auto refused = adjust_experts(none);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message, "--enable-two-batch-overlap needs --moe-a2a-backend deepep, which is none");
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

  EngineOptions nothing_to_choose = parse({"--ep-dispatch-algorithm=dynamic"});
  EXPECT_THAT(adjust_experts(nothing_to_choose).error().message, HasSubstr("--ep-num-redundant-experts"));

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
  EXPECT_THAT(message({"--eplb-algorithm=deepseek"}), HasSubstr("balances loads, and there are none"));
}

TEST(ExpertOptionsTest, ExpertsMoveWithEplb) {
  EXPECT_FALSE(rebalance_of(parse({})));
  EngineOptions plain = parse({"--enable-eplb", "--eplb-algorithm=deepseek"});
  const auto lines = adjust_experts(plain);
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  EXPECT_THAT(*lines, testing::ElementsAre(HasSubstr("--ep-dispatch-algorithm is static"),
                                           HasSubstr("--expert-distribution-recorder-mode is stat")));
  EXPECT_TRUE(expert_placement_of(plain).moves);
  EXPECT_FALSE(expert_placement_of(plain).trivial());
  EXPECT_EQ(rebalance_of(plain)->steps, 1000);
  EXPECT_EQ(rebalance_of(plain)->layers_at_once, 0) << "all";
  EXPECT_EQ(rebalance_of(plain)->at_most_balanced, 1.0);

  EngineOptions given = parse({"--enable-eplb", "--eplb-rebalance-num-iterations=50", "--ep-dispatch-algorithm=dynamic",
                               "--eplb-rebalance-layers-per-chunk=3", "--expert-distribution-recorder-mode=per_pass",
                               "--eplb-min-rebalancing-utilization-threshold=0.8"});
  EXPECT_TRUE(adjust_experts(given)->empty());
  EXPECT_EQ(rebalance_of(given)->steps, 50);
  EXPECT_EQ(rebalance_of(given)->layers_at_once, 3);
  EXPECT_EQ(rebalance_of(given)->at_most_balanced, 0.8);
  EXPECT_EQ((*expert_recorder_of(given))->steps, 50) << "as long as what experts are placed by";

  for (const std::string flag : {"--eplb-rebalance-num-iterations=50", "--eplb-rebalance-layers-per-chunk=3",
                                 "--eplb-min-rebalancing-utilization-threshold=0.8"}) {
    const auto refused = check_engine_options(parse({"--model-path=m", flag}));
    ASSERT_FALSE(refused.ok()) << flag;
    EXPECT_THAT(refused.error().message, HasSubstr("needs --enable-eplb"));
  }
}

}  // namespace
}  // namespace sluice::engine
