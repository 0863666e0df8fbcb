#include "engine/deterministic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/expert_options.h"

namespace sluice::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

EngineOptions parse(std::vector<std::string> flags) {
  flags.insert(flags.begin(), {"--model=m", "--tp=2"});
  const auto options = engine_option_table().parse(flags, true);
  EXPECT_TRUE(options.ok()) << options.error().message;
  return *options;
}

TEST(DeterministicTest, RoundsNothingUnlessATypeIsGiven) {
  EngineOptions options = parse({"--deterministic"});
  EXPECT_THAT(*settle_deterministic(options), ElementsAre("--dtype is float32, for --deterministic"));
  EXPECT_EQ(options.dtype, "float32");
  EXPECT_EQ(settled_dtype(parse({"--deterministic"})), "float32");
  EXPECT_EQ(settled_dtype(parse({"--deterministic", "--dtype=bfloat16"})), "bfloat16");
  EXPECT_EQ(settled_dtype(parse({})), "auto");
  options = parse({"--deterministic", "--dtype=bfloat16"});
  EXPECT_THAT(*settle_deterministic(options), IsEmpty());
  EXPECT_EQ(options.dtype, "bfloat16");
  options = parse({});
  EXPECT_THAT(*settle_deterministic(options), IsEmpty());
  EXPECT_EQ(options.dtype, "auto");
}

TEST(DeterministicTest, RefusesWhatDependsOnChanceOrOnOtherRequests) {
  const auto message = [](std::vector<std::string> flags) {
    flags.emplace_back("--moe-a2a-backend=deepep");
    EngineOptions plain = parse(flags);
    EXPECT_TRUE(adjust_experts(plain).ok() && settle_deterministic(plain).ok()) << "it is fine without";
    flags.emplace_back("--deterministic");
    EngineOptions options = parse(flags);
    EXPECT_TRUE(adjust_experts(options).ok());
    const auto settled = settle_deterministic(options);
    return settled.ok() ? "" : settled.error().message;
  };
  EXPECT_EQ(
      message({"--enable-eplb"}),
      "--enable-eplb does not go with --deterministic: experts move by the load, and with them the order of sums");
  EXPECT_EQ(message({"--ep-num-redundant-experts=2", "--ep-dispatch-algorithm=dynamic"}),
            "--ep-dispatch-algorithm dynamic does not go with --deterministic: copies of experts are chosen at random");
  EXPECT_EQ(message({"--deepep-dispatch-dtype=fp8_e4m3"}),
            "--deepep-dispatch-dtype fp8_e4m3 does not go with --deterministic: rows are rounded on their way, which "
            "one rank does not do");
  EXPECT_EQ(message({"--enable-two-batch-overlap"}),
            "--enable-two-batch-overlap does not go with --deterministic: where a batch is cut depends on the other "
            "requests in it");
  EXPECT_EQ(message({"--deepep-mode=normal", "--ep-num-redundant-experts=2"}), "");
}

TEST(DeterministicTest, RowsGoTheSameWayWhetherOrNotAnotherRequestPrefills) {
  const auto settled = [](std::vector<std::string> flags) {
    EngineOptions options = parse(std::move(flags));
    const auto lines = adjust_experts(options);
    EXPECT_TRUE(lines.ok()) << lines.error().message;
    return std::pair(options.deepep_mode, lines.ok() ? *lines : std::vector<std::string>());
  };
  const std::string deepep = "--moe-a2a-backend=deepep";
  const auto [fixed, said] = settled({deepep, "--deterministic"});
  EXPECT_EQ(fixed, "normal");
  EXPECT_THAT(said, ElementsAre("--deepep-mode is normal, for --deterministic"));
  EXPECT_EQ(settled({deepep}).first, "auto");
  EXPECT_EQ(settled({"--deterministic"}).first, "auto") << "nothing is dispatched";
  EXPECT_EQ(settled({deepep, "--deterministic", "--deepep-mode=low_latency", "--chunked-prefill-size=128"}).first,
            "low_latency");
}

TEST(DeterministicTest, RequestsThatBringNoSeedHaveTheSame) {
  EXPECT_EQ(common_seed(parse({})), std::nullopt);
  EXPECT_EQ(common_seed(parse({"--random-seed=7"})), std::nullopt);
  EXPECT_EQ(common_seed(parse({"--deterministic"})), 42u);
  EXPECT_EQ(common_seed(parse({"--deterministic", "--random-seed=7"})), 7u);
}

}  // namespace
}  // namespace sluice::engine
