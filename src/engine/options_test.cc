#include "engine/options.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

namespace sluice::engine {
namespace {

TEST(EngineOptionsTest, DefaultsAreTheReferences) {
  const EngineOptions o = engine_option_table().defaults();
  EXPECT_EQ(o.host, "127.0.0.1");
  EXPECT_EQ(o.port, 30000);
  EXPECT_EQ(o.dp_size, 1);
  EXPECT_EQ(o.max_prefill_tokens, 16384);
  EXPECT_EQ(o.schedule_policy, "fcfs");
  EXPECT_EQ(o.decode_log_interval, 40);
  EXPECT_FALSE(o.disable_cache_report);
}

TEST(EngineOptionsTest, AliasesOfTheReferenceWork) {
  auto o = engine_option_table().parse({"--model", "m", "--dp", "4", "--tp", "1", "--ep", "1",
                                        "--incremental-streaming-output", "--tensor-parallel-size=1"});
  ASSERT_TRUE(o.ok()) << o.error().message;
  EXPECT_EQ(o->model_path, "m");
  EXPECT_EQ(o->dp_size, 4);
  EXPECT_TRUE(o->stream_output);
  EXPECT_EQ(engine_option_table().parse({"--data-parallel-size", "3"})->dp_size, 3);
}

TEST(EngineOptionsTest, FlagsThatAreNotBuiltAreNamedWithWhatToDoInstead) {
  for (const auto& flag : engine_option_table().rejected()) {
    auto o = engine_option_table().parse({"--model", "m", fmt::format("--{}", flag.name)});
    ASSERT_FALSE(o.ok()) << flag.name;
    EXPECT_EQ(o.error().code, ErrorCode::kBadOption);
    EXPECT_NE(o.error().message.find(std::string(flag.name)), std::string::npos) << o.error().message;
  }
}

TEST(EngineOptionsTest, ValuesThatAskForWhatIsDoneAnywayAreTaken) {
  const auto parse = [](const char* flag, const char* value) {
    return engine_option_table().parse({"--model", "m", flag, value, "--port", "7"});
  };
  for (const auto& [flag, value] :
       {std::pair{"--disaggregation-mode", "null"}, std::pair{"--elastic-ep-backend", "none"}}) {
    const auto taken = parse(flag, value);
    ASSERT_TRUE(taken.ok()) << taken.error().message;
    EXPECT_EQ(taken->port, 7);
  }
  EXPECT_FALSE(parse("--disaggregation-mode", "prefill").ok());
  EXPECT_FALSE(parse("--elastic-ep-backend", "mooncake").ok());
}

TEST(EngineOptionsTest, FlagsOutsideTheScopeAreNotUnknown) {
  for (const char* flag : {"--speculative-accept-threshold-single", "--disaggregation-decode-polling-interval",
                           "--lora-drain-wait-threshold", "--mm-process-config"}) {
    const auto o = engine_option_table().parse({"--model", "m", flag, "1"});
    ASSERT_FALSE(o.ok()) << flag;
    EXPECT_NE(o.error().message.find("outside the scope of this engine"), std::string::npos) << o.error().message;
  }
}

TEST(EngineOptionsTest, NoNameStandsTwice) {
  std::set<std::string_view> seen;
  for (const auto& spec : engine_option_table().specs()) {
    EXPECT_TRUE(seen.insert(spec.name).second) << spec.name;
    for (const auto alias : spec.aliases) EXPECT_TRUE(seen.insert(alias).second) << alias;
  }
  for (const auto& flag : engine_option_table().rejected()) EXPECT_TRUE(seen.insert(flag.name).second) << flag.name;
}

TEST(EngineOptionsTest, LayoutsThatAreNotBuiltAreRefusedWithBothValues) {
  const auto checked = check_engine_options(*engine_option_table().parse({"--model", "m", "--pp-size", "2"}));
  ASSERT_FALSE(checked.ok());
  EXPECT_NE(checked.error().message.find("--pp-size must be 1, not 2"), std::string::npos) << checked.error().message;
  EXPECT_FALSE(check_engine_options(engine_option_table().defaults()).ok()) << "no model";
  EXPECT_TRUE(check_engine_options(*engine_option_table().parse({"--model", "m"})).ok());
}

TEST(EngineOptionsTest, TracesNeedAnEndpoint) {
  const auto check = [](const char* endpoint) {
    return check_engine_options(
        *engine_option_table().parse({"--model=m", "--enable-trace", "--otlp-traces-endpoint", endpoint}));
  };
  for (const char* good : {"localhost:4317", "grpcs://collector:4317", "http://collector:4318"})
    EXPECT_TRUE(check(good).ok());
  const auto wrong = check("ftp://collector");
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("--otlp-traces-endpoint"), std::string::npos);
}

TEST(EngineOptionsTest, LabelsOfClientsMustBeLabels) {
  const auto checked = [](std::vector<std::string> names) {
    std::vector<std::string> flags = {"--model=m", "--tokenizer-metrics-allowed-custom-labels"};
    flags.insert(flags.end(), names.begin(), names.end());
    return check_engine_options(*engine_option_table().parse(flags));
  };
  EXPECT_TRUE(checked({"team", "_app2"}).ok());
  for (const char* wrong : {"model_name", "le", "2nd", "a-b", "__name", ""}) {
    EXPECT_NE(checked({wrong}).error().message.find("--tokenizer-metrics-allowed-custom-labels"), std::string::npos);
  }
  EXPECT_FALSE(checked({"team", "team"}).ok());
  EXPECT_FALSE(checked(std::vector<std::string>(17, "x")).ok());
  // Ranks get them in a list.
  const auto options = *engine_option_table().parse({"--model=m", "--tokenizer-metrics-allowed-custom-labels", "team",
                                                     "app", "--tokenizer-metrics-custom-labels-header=h"});
  const auto read = engine_options_from_json(engine_options_to_json(options));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->tokenizer_metrics_allowed_custom_labels, (StringList{"team", "app"}));
  EXPECT_EQ(read->tokenizer_metrics_custom_labels_header, "h");
}

TEST(EngineOptionsTest, X11WhatAnInstanceOnSeveralHostsNeeds) {
  const auto check = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), "--model=m");
    const auto checked = check_engine_options(*engine_option_table().parse(flags, true));
    return checked.ok() ? std::string() : checked.error().message;
  };
  EXPECT_EQ(check({"--tp=4", "--nnodes=2", "--node-rank=1", "--dist-init-addr=[fe80::1]:5000"}), "");
  EXPECT_EQ(check({"--tp=4", "--dp=4", "--enable-dp-attention", "--nnodes=2", "--nccl-init-addr=a:5000"}), "");
  EXPECT_EQ(check({"--node-rank=2"}), "--node-rank 2 must be from 0 to 0 with --nnodes 1");
  EXPECT_EQ(check({"--tp=4", "--nnodes=3", "--dist-init-addr=a:5000"}),
            "--nnodes 3 does not divide --tp-size 4; the nearest values that do: 2, 4");
  EXPECT_NE(check({"--dp=2", "--tp=2", "--nnodes=2", "--dist-init-addr=a:5000"}).find("sluice gateway --worker-urls"),
            std::string::npos);
  EXPECT_NE(check({"--tp=2", "--nnodes=2"}).find("needs --dist-init-addr"), std::string::npos);
  EXPECT_NE(check({"--dist-init-addr=a:5000"}).find("leave it out on one host"), std::string::npos);
  for (const char* wrong : {"a", "a:", ":5000", "a:0", "a:70000", "fe80::1:5000", "a:5000x", "0.0.0.0:5000"}) {
    EXPECT_NE(check({"--tp=2", "--nnodes=2", fmt::format("--dist-init-addr={}", wrong)}), "") << wrong;
  }
}

TEST(EngineOptionsTest, SchedulingFlagsThatDoNotGoTogetherAreRefused) {
  const auto check = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), "--model=m");
    return check_engine_options(*engine_option_table().parse(flags, true));
  };
  EXPECT_TRUE(check({"--enable-priority-scheduling", "--schedule-policy=lof"}).ok());
  EXPECT_TRUE(check({"--schedule-policy=priority"}).ok());
  const auto lpm = check({"--enable-priority-scheduling", "--schedule-policy=lpm"});
  ASSERT_FALSE(lpm.ok());
  EXPECT_NE(lpm.error().message.find("fcfs or lof, not lpm"), std::string::npos) << lpm.error().message;
  EXPECT_TRUE(check({"--page-size=16", "--chunked-prefill-size=64"}).ok());
  EXPECT_TRUE(check({"--page-size=16", "--chunked-prefill-size=-1"}).ok());
  const auto cut = check({"--page-size=16", "--chunked-prefill-size=40"});
  ASSERT_FALSE(cut.ok());
  EXPECT_NE(cut.error().message.find("(40) must be a multiple of --page-size (16)"), std::string::npos);
}

TEST(EngineOptionsTest, WhatOnlyTunesSomethingThatIsOffIsRefused) {
  const auto check = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), "--model=m");
    const auto checked = check_engine_options(*engine_option_table().parse(flags, true));
    return checked.ok() ? std::string() : checked.error().message;
  };
  EXPECT_EQ(check({"--prefill-delayer-max-delay-passes=8"}),
            "--prefill-delayer-max-delay-passes needs --enable-prefill-delayer");
  EXPECT_EQ(check({"--prefill-delayer-max-delay-passes=8", "--enable-prefill-delayer"}), "");
  EXPECT_EQ(check({"--mixed-chunk-gap=1.5"}), "--mixed-chunk-gap needs --enable-mixed-chunk");
  EXPECT_EQ(check({"--mixed-chunk-gap=1.5", "--enable-mixed-chunk"}), "");
}

TEST(EngineOptionsTest, TheLoadFormatMustBeThatOfTheFiles) {
  const auto accepted = [](const char* model, const char* format) {
    return check_engine_options(*engine_option_table().parse({"--model", model, "--load-format", format})).ok();
  };
  EXPECT_TRUE(accepted("m", "auto") && accepted("m.gguf", "auto"));
  EXPECT_TRUE(accepted("m", "safetensors") && accepted("m", "dummy") && accepted("m.gguf", "gguf"));
  EXPECT_FALSE(accepted("m", "gguf") || accepted("m.gguf", "safetensors") || accepted("m.gguf", "dummy"));
}

TEST(EngineOptionsTest, JsonCarriesEveryRow) {
  auto o = engine_option_table().parse({"--model", "m", "--dp-size", "2", "--mem-fraction-static", "0.25",
                                        "--schedule-conservativeness", "0.3", "--chunked-prefill-size", "-1",
                                        "--disable-radix-cache", "--served-model-name", "a b", "--random-seed", "7"});
  ASSERT_TRUE(o.ok());
  const auto json = engine_options_to_json(*o);
  EXPECT_EQ(json.size(), engine_option_table().size());
  EXPECT_EQ(json["dp_size"], 2);
  auto back = engine_options_from_json(json);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(engine_options_to_json(*back), json);
  EXPECT_EQ(back->chunked_prefill_size, -1);
  EXPECT_FALSE(engine_options_from_json({{"dp_size", "many"}}).ok());
  EXPECT_FALSE(engine_options_from_json({{"disable_radix_cache", 1}}).ok());
}

}  // namespace
}  // namespace sluice::engine
