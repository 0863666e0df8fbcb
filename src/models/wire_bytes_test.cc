// The formula of the bytes on the wire against what the communicators count, in every layout that a fixture can be
// divided into.
#include "models/wire_bytes.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <thread>

#include "base/rng.h"
#include "models/model_fixture.h"
#include "models/sharding.h"
#include "parallel/registry.h"

namespace sluice::models {
namespace {

using parallel::Layout;
using parallel::MoeAllToAll;

ModelConfig config_at(const std::string& file) {
  std::ifstream in(file);
  return config_from_json(nlohmann::json::parse(in), nullptr).value();
}
ModelConfig published(const std::string& name) {
  return config_at(std::string(SLUICE_FIXTURES_DIR) + "/published-configs/" + name + ".json");
}

void on_each(size_t ranks, const std::function<void(size_t)>& body) {
  std::vector<std::thread> threads;
  for (size_t i = 0; i < ranks; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

struct Counted {
  double bytes = 0;
  double remote_rows = 0;
};

// Pairs of a token and another rank to which it goes for one of its experts, of one rank's tokens; with low_latency of
// a token and an expert of another rank.
double remote_rows_of(const Routing& routing, const moe::ExpertMap& map, const Layout& layout, bool low_latency) {
  std::set<std::pair<size_t, int64_t>> pairs;
  const size_t in_layer = routing.experts.size() / static_cast<size_t>(std::max<int64_t>(1, routing.layers));
  std::vector<int32_t> copies;
  for (size_t i = 0; i < routing.experts.size(); ++i) {
    if (i % in_layer == 0) copies = static_copies(map, routing.numbers[i / in_layer], layout.experts());
    const int64_t rank = copies[static_cast<size_t>(routing.experts[i])] / (map.physical / layout.tp_size);
    if (rank != layout.tp_rank) pairs.emplace(low_latency ? i : i / static_cast<size_t>(routing.top_k), rank);
  }
  return static_cast<double>(pairs.size());
}

// What count_step() is told beside layout and tokens.
struct Asked {
  moe::DeepEpOptions deepep = {};
  moe::ExpertPlacement placement = {};
  bool extend = true;  // somebody prefills
  int64_t padded_rows = 0;
};

// One step of `tokens` in each attention group, logits of all of them, on ranks that `family` connects.
Counted count_step(const std::string& family, const std::string& fixture, const ModelConfig& config, Layout layout,
                   std::vector<int64_t> tokens, const Asked& asked = {}) {
  Counted counted;
  const auto& rows = parallel::communicators();
  const auto row = std::ranges::find(rows, family, &parallel::CommunicatorRow::name);
  auto world = row->make_group(static_cast<int>(layout.tp_size), {}).value();
  std::vector<double> bytes(world.size()), remote(world.size());
  on_each(world.size(), [&](size_t i) {
    Layout own = layout;
    own.tp_rank = static_cast<int64_t>(i);
    const auto groups = parallel::make_groups(*world[i], own);
    ASSERT_TRUE(groups.ok()) << groups.error().message;
    const auto runner = load_runner({.model_path = folder_of(fixture),
                                     .dtype = "float32",
                                     .max_step_tokens = 128,
                                     .max_step_seqs = 8,
                                     .record_routing = true,
                                     .expert_placement = asked.placement,
                                     .deepep = asked.deepep,
                                     .groups = &*groups});
    ASSERT_TRUE(runner.ok()) << runner.error().message;
    Steps steps(**runner);
    const auto group = static_cast<size_t>(own.attention_dp().rank);
    std::vector<Piece> pieces;
    if (tokens[group] > 0) {
      Rng rng(group);
      pieces.push_back({});
      for (int64_t t = 0; t < tokens[group]; ++t) pieces[0].ids.push_back(static_cast<int32_t>(rng.below(512)));
    }
    const StepArrays arrays(pieces);
    StepBatch batch = arrays.view();
    batch.extend = asked.extend;
    if (own.dp_attention()) batch.group_tokens = batch.group_logits = tokens;
    batch.padded_rows = asked.padded_rows;
    const auto received = [&] {
      return static_cast<double>(world[i]->received_bytes() + groups->attention_tp->received_bytes() +
                                 groups->attention_dp->received_bytes());
    };
    const double before = received();
    const Output output = steps.run(batch);
    bytes[i] = received() - before;
    if (config.moe && layout.a2a == MoeAllToAll::kDeepEp) {
      const auto map = make_expert_map(asked.placement, {.layers = config.num_layers,
                                                         .experts = config.moe->experts,
                                                         .groups = config.moe->groups,
                                                         .ranks = own.ep_size});
      ASSERT_TRUE(map.ok()) << map.error().message;
      const moe::DeepEpMode mode = asked.deepep.mode;
      remote[i] =
          remote_rows_of(output.routing, *map, own,
                         mode == moe::DeepEpMode::kLowLatency || (mode == moe::DeepEpMode::kAuto && !asked.extend));
    }
  });
  for (size_t i = 0; i < world.size(); ++i) {
    counted.bytes += bytes[i];
    counted.remote_rows += remote[i];
  }
  return counted;
}

std::vector<Layout> layouts() {
  std::vector<Layout> all;
  for (const auto& [tp, dp] : {std::pair<int64_t, int64_t>{2, 1}, {4, 1}, {2, 2}, {4, 2}, {4, 4}}) {
    all.push_back({.tp_size = tp, .dp_size = dp});
    all.push_back({.tp_size = tp, .dp_size = dp, .ep_size = tp});
    all.push_back({.tp_size = tp, .dp_size = dp, .ep_size = tp, .a2a = MoeAllToAll::kDeepEp});
    if (tp == 4) all.push_back({.tp_size = tp, .dp_size = dp, .ep_size = 2});
    if (dp == 1) continue;
    all.push_back({.tp_size = tp, .dp_size = dp, .dense_data_parallel = true, .dp_lm_head = true});
    all.push_back({.tp_size = tp,
                   .dp_size = dp,
                   .ep_size = tp,
                   .a2a = MoeAllToAll::kDeepEp,
                   .dense_data_parallel = true,
                   .dp_lm_head = true});
  }
  return all;
}

std::string text(const Layout& l) {
  return fmt::format("tp {} dp {} ep {} {}{}{}", l.tp_size, l.dp_size, l.ep_size,
                     l.a2a == MoeAllToAll::kDeepEp ? "deepep" : "none", l.dense_data_parallel ? " dense 1" : "",
                     l.dp_lm_head ? " dp head" : "");
}

TEST(WireBytesTest, AreWhatTheCommunicatorsCountInEveryLayoutOfEveryFixture) {
  int compared = 0, dispatched = 0, cut_experts = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SLUICE_FIXTURES_DIR)) {
    if (!std::filesystem::exists(entry.path() / "reference.safetensors")) continue;
    const std::string fixture = entry.path().filename();
    const ModelConfig config = config_at(entry.path() / "config.json");
    for (const Layout& layout : layouts()) {
      if (!check_sharding(config, layout).ok()) continue;
      SCOPED_TRACE(fixture + " " + text(layout));
      // A group of many, one of one, an idle one.
      std::vector<int64_t> tokens{9, 1, 0, 4};
      tokens.resize(static_cast<size_t>(layout.dp_size));
      const Counted counted = count_step("inproc", fixture, config, layout, tokens);
      const WireBytes formula = wire_bytes(config, layout, kernels::DType::kF32, {tokens, tokens},
                                           {.remote = counted.remote_rows}, kAlwaysAddAll);
      // Where everything is divided by tokens nothing is sent.
      EXPECT_EQ(counted.bytes > 0, layout.attention_tp_size() > 1 || !layout.dp_lm_head || config.moe.has_value());
      EXPECT_EQ(formula.total(), counted.bytes);
      ++compared;
      dispatched += counted.remote_rows > 0;
      cut_experts += config.moe && layout.ep_size > 1 && layout.expert_tp_size() > 1;
    }
  }
  EXPECT_GT(compared, 50);
  EXPECT_GT(cut_experts, 10);
  EXPECT_GT(dispatched, 10);
}

TEST(WireBytesTest, OfAFixedShapeAreThoseOfItsRowsWhateverTheTokens) {
  const std::string fixture = "tiny-qwen3-moe";
  const ModelConfig config = config_at(folder_of(fixture) + "/config.json");
  for (const Layout& layout : layouts()) {
    if (!layout.dp_attention()) continue;
    SCOPED_TRACE(text(layout));
    std::vector<int64_t> few(static_cast<size_t>(layout.dp_size), 1), some{5, 2, 0, 8};
    some.resize(static_cast<size_t>(layout.dp_size));
    for (const auto& tokens : {few, some}) {
      const Counted counted = count_step("inproc", fixture, config, layout, tokens, {.padded_rows = 8});
      const StepLoad load{.tokens = tokens, .logits = tokens, .padded_rows = 8};
      EXPECT_EQ(wire_bytes(config, layout, kernels::DType::kF32, load, {.remote = counted.remote_rows}, kAlwaysAddAll)
                    .total(),
                counted.bytes);
    }
    if (layout.attention_tp_size() > 1 || layout.a2a == MoeAllToAll::kDeepEp || layout.dense_data_parallel) continue;
    EXPECT_EQ(count_step("inproc", fixture, config, layout, few, {.padded_rows = 8}).bytes,
              count_step("inproc", fixture, config, layout, some, {.padded_rows = 8}).bytes)
        << "the same in each step";
  }
}

TEST(WireBytesTest, OfSharedMemoryAreThoseOfItsRuleForShortAndLongSums) {
  const std::string fixture = "tiny-deepseek-v3";
  const ModelConfig config = config_at(folder_of(fixture) + "/config.json");
  for (const Layout& layout : {Layout{.tp_size = 4}, Layout{.tp_size = 4, .dp_size = 2},
                               Layout{.tp_size = 4, .dp_size = 4, .ep_size = 4, .a2a = MoeAllToAll::kDeepEp}}) {
    for (const int64_t many : {2, 100}) {
      SCOPED_TRACE(text(layout));
      const std::vector<int64_t> tokens(static_cast<size_t>(layout.dp_size), many);
      const Counted counted = count_step("shm", fixture, config, layout, tokens);
      EXPECT_EQ(
          wire_bytes(config, layout, kernels::DType::kF32, {tokens, tokens}, {.remote = counted.remote_rows}).total(),
          counted.bytes);
    }
  }
}

TEST(WireBytesTest, OfRowsInFp8AreThoseOfTheirValuesAndScales) {
  for (const std::string fixture : {"tiny-deepseek-v3", "tiny-qwen3-moe"}) {
    SCOPED_TRACE(fixture);
    const ModelConfig config = config_at(folder_of(fixture) + "/config.json");
    const Layout layout{.tp_size = 2, .dp_size = 2, .ep_size = 2, .a2a = MoeAllToAll::kDeepEp};
    const std::vector<int64_t> tokens{9, 4};
    const Counted whole = count_step("inproc", fixture, config, layout, tokens);
    const Counted fp8 = count_step("inproc", fixture, config, layout, tokens, {.deepep = {.fp8 = true}});
    EXPECT_LT(fp8.bytes, whole.bytes);
    EXPECT_EQ(wire_bytes(config, layout, kernels::DType::kF32, {tokens, tokens},
                         {.remote = fp8.remote_rows, .fp8 = true}, kAlwaysAddAll)
                  .total(),
              fp8.bytes);
  }
}

TEST(WireBytesTest, OfLowLatencyAreThoseOfARowForEachExpert) {
  for (const bool fp8 : {false, true}) {
    const std::string fixture = "tiny-deepseek-v3";
    const ModelConfig config = config_at(folder_of(fixture) + "/config.json");
    const Layout layout{.tp_size = 4, .dp_size = 4, .ep_size = 4, .a2a = MoeAllToAll::kDeepEp};
    const std::vector<int64_t> tokens{9, 1, 0, 4};
    const Counted counted = count_step("inproc", fixture, config, layout, tokens,
                                       {.deepep = {.mode = moe::DeepEpMode::kLowLatency, .capacity = 16, .fp8 = fp8}});
    EXPECT_GT(counted.remote_rows, 0);
    EXPECT_EQ(wire_bytes(config, layout, kernels::DType::kF32, {tokens, tokens},
                         {.remote = counted.remote_rows, .fp8 = fp8, .low_latency = true}, kAlwaysAddAll)
                  .total(),
              counted.bytes);
  }
}

TEST(WireBytesTest, OfTheModeAutoAreThoseOfTheModeThatItChooses) {
  const std::string fixture = "tiny-deepseek-v3";
  const ModelConfig config = config_at(folder_of(fixture) + "/config.json");
  const Layout layout{.tp_size = 4, .dp_size = 2, .ep_size = 4, .a2a = MoeAllToAll::kDeepEp};
  const std::vector<int64_t> tokens{9, 2};
  for (const bool extend : {true, false}) {
    SCOPED_TRACE(extend ? "somebody prefills" : "all decode");
    const Counted counted = count_step("inproc", fixture, config, layout, tokens,
                                       {.deepep = {.mode = moe::DeepEpMode::kAuto, .capacity = 16}, .extend = extend});
    EXPECT_GT(counted.remote_rows, 0);
    EXPECT_EQ(wire_bytes(config, layout, kernels::DType::kF32, {tokens, tokens},
                         {.remote = counted.remote_rows, .low_latency = !extend}, kAlwaysAddAll)
                  .total(),
              counted.bytes);
  }
}

TEST(WireBytesTest, WithCopiesOfExpertsAreThoseOfTheRowsThatStillLeaveTheirRank) {
  const std::string fixture = "tiny-deepseek-v3";
  const ModelConfig config = config_at(folder_of(fixture) + "/config.json");
  const std::vector<int64_t> tokens{9, 1, 0, 4};
  const int64_t copies = config.moe->experts / 2;
  for (const bool low_latency : {false, true}) {
    const Layout layout{.tp_size = 4, .dp_size = 4, .ep_size = 4, .a2a = MoeAllToAll::kDeepEp};
    const auto count = [&](int64_t redundant) {
      const auto mode = low_latency ? moe::DeepEpMode::kLowLatency : moe::DeepEpMode::kNormal;
      return count_step("inproc", fixture, config, layout, tokens,
                        {.deepep = {.mode = mode, .capacity = 16}, .placement = {.redundant = redundant}});
    };
    const Counted once = count(0), copied = count(copies);
    EXPECT_NE(copied.remote_rows, once.remote_rows);
    EXPECT_EQ(
        wire_bytes(config, layout, kernels::DType::kF32, {tokens, tokens},
                   {.remote = copied.remote_rows, .low_latency = low_latency, .physical = config.moe->experts + copies},
                   kAlwaysAddAll)
            .total(),
        copied.bytes);
  }
  // All tokens are everywhere already: copies cost nothing.
  const Layout none{.tp_size = 4, .dp_size = 4, .ep_size = 4};
  EXPECT_EQ(count_step("inproc", fixture, config, none, tokens, {.placement = {.redundant = copies}}).bytes,
            wire_bytes(config, none, kernels::DType::kF32, {tokens, tokens}, {}, kAlwaysAddAll).total());
}

// Choices of 2 of 4 groups and 2 of their 4 experts, by hand: both in one group with probability 1/3.
TEST(WireBytesTest, ATokenGoesToAsManyRanksAsItsChoicesReachOnAverage) {
  MoeConfig moe{.experts = 8, .top_k = 2, .groups = 4, .kept_groups = 2};
  EXPECT_NEAR(expected_reach(moe, 4).ranks, 1.0 / 3 * 1 + 2.0 / 3 * 2, 1e-9);
  moe.groups = moe.kept_groups = 1;
  EXPECT_NEAR(expected_reach(moe, 8).ranks, 2, 1e-9);
  EXPECT_NEAR(expected_reach(moe, 1).ranks, 1, 1e-9);
  // DeepSeek-V3 keeps 4 of 8 groups, so that a token goes to at most 4 of 8 ranks.
  EXPECT_LT(expected_reach(*published("DeepSeek-V3").moe, 8).ranks, 4);
  EXPECT_GT(expected_reach(*published("DeepSeek-V3").moe, 8).ranks, 3.4);
  // 8 of 384 drawn freely reach 8 (1 - (7/8)^8) = 5.3 of 8 ranks.
  EXPECT_NEAR(expected_reach(*published("Kimi-K2-Instruct").moe, 8).ranks, 5.25, 0.08);
}

// 4 experts on 2 ranks, 2 of a token.
TEST(WireBytesTest, CopiesKeepATokenOnItsRankOrSpreadIt) {
  const MoeConfig moe{.experts = 4, .top_k = 2, .sparse = {false, true}};
  moe::ExpertMap map{.logical = 4, .physical = 8, .location = {{}, {0, 1, 2, 3, 0, 1, 2, 3}}};
  // Everybody has everything.
  TokenReach reach = expected_reach(moe, 2, &map);
  EXPECT_NEAR(reach.ranks, 1, 1e-9);
  EXPECT_NEAR(reach.remote_ranks, 0, 1e-9);
  EXPECT_NEAR(reach.remote_experts, 0, 1e-9);
  // Any copy: half of the experts go away, and with probability 1/2 the two part.
  map.choice = moe::CopyChoice::kDynamic;
  reach = expected_reach(moe, 2, &map);
  EXPECT_NEAR(reach.ranks, 1.5, 1e-9);
  EXPECT_NEAR(reach.remote_ranks, 0.75, 1e-9);
  EXPECT_NEAR(reach.remote_experts, 1, 1e-9);
  // Each once, and in order: 1/6 for each rank alone.
  reach = expected_reach(moe, 2);
  EXPECT_NEAR(reach.ranks, 2 - 2.0 / 6, 1e-9);
  EXPECT_NEAR(reach.remote_ranks, reach.ranks / 2, 1e-9);
  EXPECT_NEAR(reach.remote_experts, 1, 1e-9);
  // One rank has 0 and 1, the other 2, 3 and 1: of the first one's tokens 2 and 3 leave, of the second one's 0.
  map = {.logical = 4, .physical = 6, .location = {{}, {0, 1, 0, 2, 3, 1}}};
  reach = expected_reach(moe, 2, &map);
  EXPECT_NEAR(reach.remote_experts, (2 * 2.0 / 4 + 2 * 1.0 / 4) / 2, 1e-9);
}

// 58 layers of a token: rows of 7168 in bf16 to each rank but its own, and back in float32.
TEST(WireBytesTest, OfDeepSeekV3AreThoseOfItsRowsByHand) {
  const ModelConfig config = published("DeepSeek-V3");
  const std::vector<int64_t> ones(8, 1), none(8, 0);
  const Layout deepep{.tp_size = 8,
                      .dp_size = 8,
                      .ep_size = 8,
                      .a2a = MoeAllToAll::kDeepEp,
                      .dense_data_parallel = true,
                      .dp_lm_head = true};
  const double rows = 58 * 8 * 3;
  const WireBytes dispatched = wire_bytes(config, deepep, kernels::DType::kBf16, {ones, none}, {.remote = rows});
  EXPECT_EQ(dispatched.dispatch, rows * (7168 * 2 + 2 * 8 * 4) + 58 * 8 * 8 * 8 * 7);
  EXPECT_EQ(dispatched.combine, rows * 7168 * 4);
  const WireBytes fp8 = wire_bytes(config, deepep, kernels::DType::kBf16, {ones, none}, {.remote = rows, .fp8 = true});
  EXPECT_EQ(dispatched.dispatch - fp8.dispatch, rows * (7168 * 2 - (7168 + 7168 / 128 * 4)));
  EXPECT_EQ(dispatched.attention + dispatched.gather + dispatched.scatter + dispatched.head, 0);
  EXPECT_EQ(dispatched.calls, 58 * 4);
  // Gathered among 8 in bf16 and scattered as float32 sums, in each of 61 layers.
  const Layout none8{.tp_size = 8, .dp_size = 8, .ep_size = 8};
  const WireBytes gathered = wire_bytes(config, none8, kernels::DType::kBf16, {ones, none});
  EXPECT_EQ(gathered.gather, 61.0 * 8 * 7168 * 2 * 7);
  EXPECT_EQ(gathered.scatter, 61.0 * 8 * 7168 * 4 * 7);
}

}  // namespace
}  // namespace sluice::models
