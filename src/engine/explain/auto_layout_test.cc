#include "engine/explain/auto_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/explain/explain.h"
#include "engine/layout_options.h"

namespace sluice::engine {
namespace {

using testing::HasSubstr;

EngineOptions options(const std::string& model, std::vector<std::string> flags) {
  flags.insert(flags.begin(),
               {"--model-path", std::string(SLUICE_FIXTURES_DIR) + "/published-configs/" + model + ".json", "--layout",
                "auto", "--dtype", "bfloat16"});
  return engine_option_table().parse(flags).value();
}

// 4 cores with memory for 20 GB.
Hardware machine(double gib = 40) {
  return {.name = "a machine",
          .devices = 4,
          .memory_bytes = static_cast<int64_t>(gib * (1 << 30)),
          .bandwidth = 40e9,
          .flops = 4e12,
          .link_bandwidth = 5e9,
          .link_latency = 30e-6,
          .memory_fraction = 0.5,
          .divisible = true};
}

TEST(AutoLayoutTest, OneMachineIsNotDividedWhereThatOnlyAddsTalk) {
  EngineOptions chosen = options("Llama-3.2-1B-Instruct", {});
  const auto lines = choose_layout(chosen, machine());
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  EXPECT_EQ(chosen.tp_size, 1);
  EXPECT_FALSE(chosen.enable_dp_attention);
  EXPECT_THAT(lines->at(0), HasSubstr("assumes 32 requests at once of 1024 prompt and 256 output tokens"));
  EXPECT_THAT(lines->at(0), HasSubstr("4 cores that reach 40.0 GB/s"));
  EXPECT_THAT(lines->at(1), HasSubstr("chosen: --tp-size 1"));
  EXPECT_THAT(lines->at(2), HasSubstr("not chosen: "));
}

// Ranks that are asked for: four copies of every latent leave room for fewer requests than wait.
TEST(AutoLayoutTest, RanksThatAreGivenStayAndLatentAttentionIsDividedByRequests) {
  EngineOptions chosen = options("DeepSeek-V2-Lite", {"--tp", "4", "--max-total-tokens", "6000"});
  const auto lines = choose_layout(chosen, machine(200));
  ASSERT_TRUE(lines.ok()) << lines.error().message;
  EXPECT_EQ(chosen.tp_size, 4);
  EXPECT_EQ(chosen.dp_size, 4);
  EXPECT_TRUE(chosen.enable_dp_attention);
  // Options that follow from it are the front's to adjust, once.
  EXPECT_EQ(chosen.schedule_conservativeness, 1.0);
  EXPECT_FALSE(adjust_layout(chosen).empty());
}

// Where links are slow and bandwidth is not, everything is divided by tokens, and all flags of that are set.
TEST(AutoLayoutTest, WhatGoesWithALayoutIsSetToo) {
  EngineOptions chosen = options("DeepSeek-V2-Lite", {"--tp", "8", "--max-total-tokens", "6000"});
  Hardware slow = machine(200);
  slow.bandwidth = 1e15;
  slow.flops = 1e18;
  slow.link_bandwidth = 1e8;
  slow.link_latency = 0;
  ASSERT_TRUE(choose_layout(chosen, slow).ok());
  EXPECT_EQ(chosen.moe_a2a_backend, "deepep");
  EXPECT_EQ(chosen.moe_dense_tp_size, 1);
  EXPECT_TRUE(chosen.enable_dp_lm_head);
  EXPECT_EQ(chosen.ep_size, 8);
}

// What is weighed is what will run: float32, which takes twice the memory and more than twice the time of bfloat16.
TEST(AutoLayoutTest, ADeterministicServerIsWeighedInFloat32) {
  const auto weighed = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(),
                 {"--model-path", SLUICE_FIXTURES_DIR "/published-configs/DeepSeek-V2-Lite.json", "--tp", "4"});
    const EngineOptions given = engine_option_table().parse(flags).value();
    const DescribedModel model = describe_model(given, /*here=*/false).value();
    return examine_layout(model, given, machine(400), {.input_tokens = 128, .output_tokens = 128}, {8}).value();
  };
  const LayoutFacts as_usual = weighed({}), fixed = weighed({"--deterministic"});
  EXPECT_EQ(fixed.options.dtype, "float32");
  EXPECT_GT(fixed.rank.weight_bytes(), 1.9 * static_cast<double>(as_usual.rank.weight_bytes()));
  EXPECT_LT(fixed.predictions[0].output_tokens_per_s, as_usual.predictions[0].output_tokens_per_s);
}

// Layouts that the server would refuse with these flags are not weighed either.
TEST(AutoLayoutTest, WhatADeterministicServerRefusesIsNotProposed) {
  const EngineOptions given =
      engine_option_table()
          .parse({"--model-path", SLUICE_FIXTURES_DIR "/published-configs/DeepSeek-V2-Lite.json", "--tp", "4",
                  "--deterministic", "--enable-two-batch-overlap"})
          .value();
  const DescribedModel model = describe_model(given, /*here=*/false).value();
  const auto all = weigh_layouts(model, given, machine(400), {.input_tokens = 128, .output_tokens = 128}, {8}, 4);
  ASSERT_FALSE(all.empty());
  for (const LayoutFacts& facts : all) EXPECT_EQ(facts.options.moe_a2a_backend, "none") << layout_flags(facts);
}

TEST(AutoLayoutTest, ALayoutThatIsGivenAsWellIsRefused) {
  EngineOptions both = options("DeepSeek-V2-Lite", {"--tp", "4", "--ep", "2"});
  const auto lines = choose_layout(both, machine());
  ASSERT_FALSE(lines.ok());
  EXPECT_EQ(lines.error().code, ErrorCode::kBadOption);
  EXPECT_THAT(lines.error().message, HasSubstr("--ep-size"));
  EngineOptions halves = options("DeepSeek-V2-Lite", {"--tp", "4", "--enable-two-batch-overlap"});
  EXPECT_THAT(choose_layout(halves, machine()).error().message,
              HasSubstr("leave out one of --layout and --enable-two-batch-overlap"));
  EngineOptions beside = options("DeepSeek-V2-Lite", {"--tp", "4", "--enable-single-batch-overlap"});
  EXPECT_THAT(choose_layout(beside, machine()).error().message,
              HasSubstr("leave out one of --layout and --enable-single-batch-overlap"));
  EngineOptions mode = options("DeepSeek-V2-Lite", {"--tp", "4", "--deepep-mode", "normal"});
  EXPECT_THAT(choose_layout(mode, machine()).error().message, HasSubstr("leave out one of --layout and --deepep-mode"));
}

TEST(AutoLayoutTest, AModelThatDoesNotFitIsToldWithFigures) {
  EngineOptions large = options("DeepSeek-V3", {});
  const auto lines = choose_layout(large, machine());
  ASSERT_FALSE(lines.ok());
  EXPECT_EQ(lines.error().code, ErrorCode::kExhausted);
  EXPECT_THAT(lines.error().message, HasSubstr("no layout fits this machine"));
  EXPECT_THAT(lines.error().message, HasSubstr("MiB of weights"));
}

TEST(AutoLayoutTest, ThisMachineHasRatesWhenItIsMeasured) {
  const auto measured = measure_this_machine();
  ASSERT_TRUE(measured.ok()) << measured.error().message;
  EXPECT_TRUE(measured->has_rates());
  EXPECT_GT(measured->link_bandwidth, 0);
  EXPECT_EQ(measured->of(2).bandwidth, measured->bandwidth / 2);
  EXPECT_FALSE(this_machine().has_rates());
}

}  // namespace
}  // namespace sluice::engine
