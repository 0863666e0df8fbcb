// `sluice explain` against the worked examples of the reference.
#include "engine/explain/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "engine/explain/options.h"
#include "engine/explain/report.h"
#include "parallel/step_sync.h"

namespace sluice::engine {
namespace {

constexpr Workload kLoad{.input_tokens = 1024, .output_tokens = 256};

std::string published(const std::string& name) {
  return std::string(SLUICE_FIXTURES_DIR) + "/published-configs/" + name + ".json";
}

ExplainArguments arguments(const std::string& model, std::vector<std::string> flags) {
  flags.insert(flags.begin(), {"--model-path", published(model)});
  auto parsed = parse_explain_arguments(flags);
  EXPECT_TRUE(parsed.ok()) << parsed.error().message;
  return parsed.ok() ? *parsed : ExplainArguments{};
}

Explanation explained(const std::string& model, const std::vector<std::string>& flags,
                      const std::vector<int64_t>& concurrency = {1, 64, 512}) {
  const ExplainArguments given = arguments(model, flags);
  const auto hardware = hardware_of(given.explain, 8);
  EXPECT_TRUE(hardware.ok()) << hardware.error().message;
  auto explanation = explain(given.engine, *hardware, kLoad, concurrency);
  EXPECT_TRUE(explanation.ok()) << explanation.error().message;
  return explanation.ok() ? *explanation : Explanation{};
}

LayoutFacts examined(const std::string& model, const std::vector<std::string>& flags,
                     const std::vector<int64_t>& concurrency = {1}) {
  const ExplainArguments given = arguments(model, flags);
  const auto hardware = hardware_of(given.explain, 8);
  EXPECT_TRUE(hardware.ok()) << hardware.error().message;
  const auto described = describe_model(given.engine, /*here=*/false);
  EXPECT_TRUE(described.ok()) << described.error().message;
  auto facts = examine_layout(*described, given.engine, *hardware, kLoad, concurrency);
  EXPECT_TRUE(facts.ok()) << facts.error().message;
  return facts.ok() ? *facts : LayoutFacts{};
}

const std::vector<std::string> kDpa = {"--tp", "8", "--dp-size", "8", "--enable-dp-attention"};
const std::vector<std::string> kDeepEp = {"--tp",
                                          "8",
                                          "--dp-size",
                                          "8",
                                          "--enable-dp-attention",
                                          "--ep",
                                          "8",
                                          "--moe-a2a-backend",
                                          "deepep",
                                          "--moe-dense-tp-size",
                                          "1",
                                          "--enable-dp-lm-head"};

// Rows of 5.3: weights and pool in GiB, thousands of tokens.
struct Row {
  std::vector<std::string> flags;
  double fraction, weights, kv, tokens, unique, unique_at_088;
};

std::vector<std::string> with(std::vector<std::string> flags, const std::vector<std::string>& more) {
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

TEST(ExplainTest, CopiesOfExpertsTakeMemoryFromTheCacheAndKeepTokensAtHome) {
  const auto h200 = with(kDeepEp, {"--hardware", "h200", "--deepep-mode", "normal"});
  const auto copied = with(h200, {"--ep-num-redundant-experts", "32"});
  const LayoutFacts once = examined("DeepSeek-V3", h200, {512}), twice = examined("DeepSeek-V3", copied, {512});
  EXPECT_EQ(twice.rank.experts.count, 36);
  EXPECT_EQ(twice.rank.experts_weights.bytes * 32, once.rank.experts_weights.bytes * 36);
  ASSERT_TRUE(once.memory && twice.memory);
  const int64_t copies = twice.rank.weight_bytes() - once.rank.weight_bytes();
  EXPECT_NEAR(static_cast<double>(once.memory->kv_bytes - twice.memory->kv_bytes), static_cast<double>(copies), 1e6);
  // A copy of its own rank is taken before another one's.
  EXPECT_LT(twice.reach.remote_experts, once.reach.remote_experts);
  // But 36 places of a rank cut the router's groups of 32, of which a token keeps 4: it goes to more ranks.
  EXPECT_GT(twice.reach.ranks, once.reach.ranks);
  EXPECT_GT(twice.wire.of_step.dispatch, once.wire.of_step.dispatch);
  // Of 512 sequences every expert has tokens: more of them are read, and none has less to do than its share.
  EXPECT_GT(twice.predictions[0].decode.experts, once.predictions[0].decode.experts);
  const LayoutFacts any = examined("DeepSeek-V3", with(copied, {"--ep-dispatch-algorithm", "dynamic"}));
  EXPECT_GT(any.reach.remote_experts, twice.reach.remote_experts);

  const std::string text = to_text(explained("DeepSeek-V3", with(copied, {"--enable-eplb"})));
  EXPECT_THAT(text, testing::HasSubstr("256 experts and 32 copies in each of 58 layers"));
  EXPECT_THAT(text, testing::HasSubstr("experts move between ranks"));
  EXPECT_THAT(text, testing::HasSubstr("252-287"));
  EXPECT_THAT(text, testing::HasSubstr("--moe-a2a-backend deepep --ep-num-redundant-experts 32"));
  const auto odd = arguments("DeepSeek-V3", with(kDeepEp, {"--ep-num-redundant-experts", "3"}));
  const auto facts = examine_layout(*describe_model(odd.engine, false), odd.engine, other_hardware(8), kLoad, {1});
  ASSERT_FALSE(facts.ok());
  EXPECT_THAT(facts.error().message, testing::HasSubstr("not divided equally among --ep-size 8"));
}

TEST(ExplainTest, LowLatencySendsARowForEachExpertOfAToken) {
  const auto h200 = with(kDeepEp, {"--hardware", "h200"});
  const LayoutFacts normal = examined("DeepSeek-V3", with(h200, {"--deepep-mode", "normal"}));
  const LayoutFacts mode = examined("DeepSeek-V3", h200);
  // 8 experts of 8 ranks that all have as many: 7 go away.
  EXPECT_NEAR(mode.reach.remote_experts, 7, 1e-9);
  EXPECT_NEAR(mode.wire.of_step.combine / normal.wire.of_step.combine, 7 / normal.reach.remote_ranks, 1e-9);
  EXPECT_EQ(normal.wire.of_step.calls - mode.wire.of_step.calls, 58);
  // What its slab takes bounds the requests, as in the server.
  const auto many = with(h200, {"--max-running-requests", "4096"});
  const LayoutFacts bounded =
      examined("DeepSeek-V3", with(many, {"--deepep-mode", "low_latency", "--chunked-prefill-size", "1024"}), {4096});
  EXPECT_EQ(bounded.memory->max_running_requests, 128);
  // Larger steps go by exact counts.
  const LayoutFacts crowded = examined("DeepSeek-V3", many, {512, 4096});
  const LayoutFacts exact = examined("DeepSeek-V3", with(many, {"--deepep-mode", "normal"}), {512, 4096});
  ASSERT_GT(crowded.predictions[1].running, 8 * 128);
  EXPECT_GT(crowded.predictions[0].decode.wire, exact.predictions[0].decode.wire);
  EXPECT_EQ(crowded.predictions[1].decode.wire, exact.predictions[1].decode.wire);
}

// Of 32 experts a rank has room for what 8 ranks send at most, twice: rows in bf16, and what becomes of them in
// float32.
TEST(ExplainTest, TheSlabOfLowLatencyIsCountedAndWhatDoesNotFitIsSaid) {
  const auto h200 = with(kDeepEp, {"--hardware", "h200", "--max-running-requests", "1024"});
  const auto slab_bytes = [](int64_t capacity) { return 32 * 8 * capacity * 7168 * (2 + 4); };
  const LayoutFacts normal = examined("DeepSeek-V3", with(h200, {"--deepep-mode", "normal"})),
                    mixed = examined("DeepSeek-V3", h200);
  ASSERT_TRUE(normal.memory && mixed.memory);
  const int64_t more = mixed.memory->buffer_bytes - normal.memory->buffer_bytes;
  EXPECT_GT(more, slab_bytes(128));
  EXPECT_LT(more, slab_bytes(128) * 2) << "with what is sent and comes back";
  EXPECT_GT(mixed.buffers.dispatch_bytes - normal.buffers.dispatch_bytes, slab_bytes(128));
  const LayoutFacts large =
      examined("DeepSeek-V3",
               with(kDeepEp, {"--hardware", "h200", "--max-running-requests", "8192", "--enable-two-batch-overlap",
                              "--deepep-num-max-dispatch-tokens-per-rank", "1024"}));
  EXPECT_FALSE(large.memory);
  EXPECT_GT(large.buffers.dispatch_bytes, 2 * slab_bytes(1024));
  EXPECT_THAT(large.why_not, testing::HasSubstr("--deepep-num-max-dispatch-tokens-per-rank"));
  EXPECT_THAT(to_text(explained("DeepSeek-V3", h200)),
              testing::HasSubstr("to send rows to experts with --deepep-mode auto"));
}

// All groups' tokens pass the part of a dense layer that a rank has; with deepep only its own pass the shared experts.
TEST(ExplainTest, DenseLayersComputeTheTokensOfAllGroupsUnlessTheyAreDataParallel) {
  // Arithmetic alone counts.
  const auto slow =
      with(kDpa, {"--ep", "8", "--moe-a2a-backend", "deepep", "--hardware", "h200", "--gpu-flops", "0.001"});
  const auto operations = [](const LayoutFacts& facts) { return facts.predictions[0].decode.dense * 1e9; };
  const LayoutFacts divided = examined("DeepSeek-V3", slow, {512});
  const models::RankShape& rank = divided.rank;
  EXPECT_EQ(rank.dense.values / (3 * 3 * 7168 * 18432 / 8), 1) << "of three dense layers";
  EXPECT_NEAR(operations(divided) / (2.0 * static_cast<double>(rank.dense.values * 512 + rank.shared.values * 512 / 8)),
              1, 1e-9);
  const LayoutFacts whole = examined("DeepSeek-V3", with(slow, {"--moe-dense-tp-size", "1"}), {512});
  EXPECT_NEAR(operations(whole) / operations(divided), 1, 1e-3) << "eight times the columns, an eighth of the tokens";
}

// 8 ranks with links that take as long as computing: halves hide one behind the other. With links of no cost, halves
// only read the weights twice.
TEST(ExplainTest, TwoBatchesHideTheShorterOfComputingAndSending) {
  const auto halves = with(kDeepEp, {"--enable-two-batch-overlap", "--hardware", "h200"});
  const LayoutFacts slow = examined("DeepSeek-V3", with(halves, {"--link-bandwidth", "5"}), {8, 512});
  const Prediction& one = slow.predictions[0];
  EXPECT_EQ(one.decode.hidden, 0) << "a token of each group cannot be divided";
  EXPECT_EQ(one.decode.total(), one.decode_unsplit);
  const StepSeconds& many = slow.predictions[1].decode;
  const double computing = many.attention + many.kv + many.dense + many.experts;
  EXPECT_GT(many.wire, computing);
  EXPECT_NEAR(many.hidden, computing * (1 - 1 / 122.0), 1e-9);
  EXPECT_LT(many.total(), slow.predictions[1].decode_unsplit);
  const LayoutFacts fast =
      examined("DeepSeek-V3", with(halves, {"--link-bandwidth", "100000", "--link-latency", "0"}), {16});
  EXPECT_GT(fast.predictions[0].decode.total(), fast.predictions[0].decode_unsplit);
  EXPECT_THAT(to_text(explained("DeepSeek-V3", halves)), testing::HasSubstr("max(C, W) + min(C, W) / 2L + head"));
  // Layouts that send no rows to experts are weighed without.
  const auto weighed = explained("DeepSeek-V3", halves).weighed;
  EXPECT_TRUE(std::ranges::any_of(weighed, [](const LayoutFacts& f) { return f.layout.ep_size == 1; }));
  const auto alone = arguments("DeepSeek-V3", with(kDpa, {"--enable-two-batch-overlap"}));
  const auto facts = examine_layout(*describe_model(alone.engine, false), alone.engine, other_hardware(8), kLoad, {1});
  ASSERT_FALSE(facts.ok());
  EXPECT_THAT(facts.error().message, testing::HasSubstr("needs --moe-a2a-backend deepep"));
}

TEST(ExplainTest, EightBitsOfCacheAndAScaleForEach64HoldNearlyTwiceTheTokens) {
  const LayoutFacts whole = examined("DeepSeek-V3", kDpa),
                    eight = examined("DeepSeek-V3", with(kDpa, {"--kv-cache-dtype", "fp8_e4m3"}));
  EXPECT_EQ(whole.rank.kv_bytes_per_token, 61 * 576 * 2);
  EXPECT_EQ(eight.rank.kv_bytes_per_token, 61 * (576 + 9 * 4));
}

TEST(ExplainTest, RowsInEightBitsTakeHalfTheWayToTheExperts) {
  const auto exact = with(kDeepEp, {"--deepep-mode", "normal"});
  const LayoutFacts whole = examined("DeepSeek-V3", exact),
                    eight = examined("DeepSeek-V3", with(exact, {"--deepep-dispatch-dtype", "fp8_e4m3"}));
  const double rows = 58 * 8 * eight.reach.remote_ranks;
  // 7168 values and 56 scales instead of 7168 in bf16.
  EXPECT_NEAR(whole.wire.of_step.dispatch - eight.wire.of_step.dispatch, rows * (7168 - 56 * 4), 1);
  EXPECT_EQ(whole.wire.of_step.combine, eight.wire.of_step.combine);
}

TEST(ExplainTest, DeepSeekV3OnEightH200HasTheTokensOfTheReference) {
  const Row rows[] = {
      {{"--tp", "8"}, 0.897, 79.5, 46.4, 709, 709, 673},
      {{"--tp", "8", "--dp-size", "2", "--enable-dp-attention"}, 0.865, 81.2, 40.3, 615, 1230, 1300},
      {{"--tp", "8", "--dp-size", "4", "--enable-dp-attention"}, 0.833, 84.5, 32.4, 495, 1980, 2390},
      {kDpa, 0.769, 91.2, 16.7, 256, 2050, 3950},
      {kDeepEp, 0.769, 95.8, 12.2, 186, 1490, 3390},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(row.flags, " ")));
    auto flags = row.flags;
    flags.insert(flags.end(), {"--hardware", "h200", "--mem-fraction-static", fmt::format("{}", row.fraction)});
    const LayoutFacts facts = examined("DeepSeek-V3", flags);
    ASSERT_TRUE(facts.memory) << facts.why_not;
    constexpr double kGiB = 1 << 30;
    // The reference rounds parameters to bytes; what is left of the memory has that error too.
    const double error = 0.01 * row.weights;
    const auto kv = static_cast<double>(facts.memory->kv_bytes) / kGiB;
    EXPECT_NEAR(static_cast<double>(facts.rank.weight_bytes()) / kGiB, row.weights, error);
    EXPECT_NEAR(kv, row.kv, error);
    const double tokens = row.tokens * 1000 * kv / row.kv;
    EXPECT_NEAR(static_cast<double>(facts.memory->max_total_tokens), tokens, 0.005 * tokens);
    EXPECT_EQ(facts.unique_tokens, facts.memory->max_total_tokens * facts.layout.dp_size);
    EXPECT_NEAR(static_cast<double>(facts.unique_tokens) / 1000, row.unique, row.unique * error / row.kv);
    flags.back() = "0.88";
    const double at_088 = static_cast<double>(examined("DeepSeek-V3", flags).unique_tokens) / 1000;
    EXPECT_NEAR(at_088, row.unique_at_088, 0.03 * row.unique_at_088);
  }
  // Eight H100 do not hold it.
  const auto small = explained("DeepSeek-V3", {"--tp", "8", "--hardware", "h100", "--gpu-memory", "79.6"});
  EXPECT_FALSE(small.layout.memory);
  EXPECT_TRUE(small.weighed.empty());
  EXPECT_NE(to_text(small).find("it does not fit: no room for a KV cache"), std::string::npos);
}

TEST(ExplainTest, Llama8BOnOneH100HasThePoolOfTheReference) {
  const LayoutFacts facts = examined(
      "Llama-3.1-8B-Instruct",
      {"--hardware", "h100", "--num-gpus", "1", "--mem-fraction-static", "0.835", "--max-running-requests", "512"});
  ASSERT_TRUE(facts.memory);
  EXPECT_NEAR(static_cast<double>(facts.memory->kv_bytes) / (1 << 30), 51.5, 0.2);
  EXPECT_NEAR(static_cast<double>(facts.unique_tokens), 422e3, 2e3);
}

TEST(ExplainTest, UniqueTokensGainWhatTheFormulaSaysForEachModel) {
  struct Gain {
    const char* model;
    int64_t dp;
    double gain;
    int64_t copies;
  };
  for (const Gain& row :
       {Gain{"DeepSeek-V3", 8, 8, 1}, Gain{"Kimi-K2-Instruct", 8, 8, 1}, Gain{"Kimi-K2-Instruct", 4, 4, 2},
        Gain{"DeepSeek-V2-Lite", 2, 2, 4}, Gain{"Qwen3-235B-A22B", 2, 2, 1}, Gain{"Qwen3-235B-A22B", 4, 2, 1},
        Gain{"Qwen3-235B-A22B", 8, 2, 1}, Gain{"Llama-3.1-70B-Instruct", 8, 1, 1}, Gain{"MiniMax-M2", 4, 1, 1}}) {
    SCOPED_TRACE(fmt::format("{} dp {}", row.model, row.dp));
    const LayoutFacts facts =
        examined(row.model, {"--tp", "8", "--dp-size", std::to_string(row.dp), "--enable-dp-attention", "--hardware",
                             "h200", "--max-running-requests", "4096"});
    const auto config = models::load_config(published(row.model), "").value();
    EXPECT_EQ(dp_attention_gain(config, facts.layout), row.gain);
    EXPECT_EQ(facts.kv_copies, row.copies);
  }
  EXPECT_EQ(examined("Qwen3-235B-A22B", {"--tp", "8", "--hardware", "h200"}).kv_copies, 2);
  EXPECT_EQ(examined("DeepSeek-V3", {"--tp", "8", "--hardware", "h200"}).kv_copies, 8);
}

TEST(ExplainTest, ADecodeStepTakesTheTimeOfItsBytesOrOfItsArithmetic) {
  const std::vector<std::string> other = {"--hardware",      "other", "--num-gpus",  "1", "--gpu-memory",     "1000",
                                          "--gpu-bandwidth", "1000",  "--gpu-flops", "1", "--link-bandwidth", "100"};
  const LayoutFacts one = examined("Llama-3.1-8B-Instruct", other, {1, 200});
  const Prediction& alone = one.predictions[0];
  const auto& rank = one.rank;
  // 10^12 bytes and 10^12 operations per second: one token reads bytes that it uses once.
  EXPECT_NEAR(alone.decode.attention, 2.0 * static_cast<double>(rank.attention.values) / 1e12, 1e-9);
  // A multiplication and an addition for each value of keys and values, of 32 heads that share 8: more than their
  // bytes.
  EXPECT_NEAR(alone.decode.kv, 1152.5 * 32 * 32 * 2 * 128 * 2 / 1e12, 1e-9);
  EXPECT_EQ(alone.decode.wire, 0);
  EXPECT_EQ(alone.decode.experts, 0);
  EXPECT_NEAR(one.predictions[1].decode.dense, 200 * 2.0 * static_cast<double>(rank.dense.values) / 1e12, 1e-6);
  // Two ranks read half each, and meet 2 * 32 + 3 times.
  auto two = other;
  two[3] = "2";
  two.insert(two.end(), {"--tp", "2", "--link-latency", "1000"});
  const Prediction divided = examined("Llama-3.1-8B-Instruct", two, {1}).predictions[0];
  EXPECT_NEAR(divided.decode.attention, alone.decode.attention / 2, 1e-5);
  EXPECT_NEAR(divided.decode.wire, 67e-3, 1e-3);
}

TEST(ExplainTest, AConcurrencyBeyondThePoolWaits) {
  const std::vector<std::string> tp = {"--tp", "8", "--hardware", "h200", "--max-total-tokens", "12800"};
  const Prediction p = examined("DeepSeek-V3", tp, {4, 100}).predictions[1];
  EXPECT_EQ(p.running, 10);
  auto dpa = tp;
  dpa.insert(dpa.end(), {"--dp-size", "8", "--enable-dp-attention"});
  const Prediction q = examined("DeepSeek-V3", dpa, {4, 100}).predictions[1];
  EXPECT_EQ(q.running, 80);
  EXPECT_GT(q.decode_tokens_per_s, 2 * p.decode_tokens_per_s);
}

TEST(ExplainTest, GroupsWithoutARequestAddNothingToAStep) {
  const std::vector<std::string> tp = {"--tp", "8", "--hardware", "h200"};
  auto dpa = tp;
  dpa.insert(dpa.end(), {"--dp-size", "8", "--enable-dp-attention"});
  const auto whole = examined("DeepSeek-V3", tp, {1, 8, 9}).predictions;
  const auto parts = examined("DeepSeek-V3", dpa, {1, 8, 9}).predictions;
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_DOUBLE_EQ(parts[i].decode.experts, whole[i].decode.experts) << whole[i].concurrency;
    EXPECT_DOUBLE_EQ(parts[i].decode.head, whole[i].decode.head) << whole[i].concurrency;
  }
  EXPECT_EQ(parts[0].decode.attention, parts[1].decode.attention) << "of one request in one group, and in each";
  EXPECT_LT(parts[0].decode.wire, parts[1].decode.wire);
  EXPECT_LT(parts[1].decode.wire, parts[2].decode.wire);
  EXPECT_LT(parts[2].decode.wire, 2 * parts[1].decode.wire);
  // Of servers without DP attention each has the whole work of its requests.
  const std::vector<std::string> four = {"--dp-size", "4", "--hardware", "h100"};
  const auto servers = examined("Qwen3-30B-A3B", four, {1, 4}).predictions;
  EXPECT_DOUBLE_EQ(servers[0].decode.total(), servers[1].decode.total());
}

// Corrections of 1.5: DPA is for many requests that the pool limits, and for what has a latent or few key heads.
TEST(ExplainTest, TheBestLayoutDependsOnTheLoadAndOnTheModel) {
  const std::vector<std::string> h200 = {"--tp", "8", "--hardware", "h200", "--max-running-requests", "4096"};
  const auto best = [&](const std::string& model, int64_t at_once) {
    return explained(model, h200, {at_once}).weighed.at(0);
  };
  EXPECT_EQ(best("DeepSeek-V3", 1).layout.dp_size, 1);
  const LayoutFacts many = best("DeepSeek-V3", 4096);
  EXPECT_GE(many.layout.dp_size, 4) << layout_flags(many);
  EXPECT_EQ(many.layout.tp_size, 8);
  const LayoutFacts llama = best("Llama-3.1-8B-Instruct", 2048);
  EXPECT_EQ(llama.layout.dp_size, 1) << layout_flags(llama);
  EXPECT_EQ(llama.instances, 8) << "replicas send nothing";
}

TEST(ExplainTest, TextAndJsonSayTheSame) {
  auto flags = kDeepEp;
  flags.insert(flags.end(), {"--hardware", "h200"});
  const Explanation e = explained("DeepSeek-V3", flags);
  const auto json = nlohmann::json::parse(to_json(e).dump());
  EXPECT_EQ(json["ranks"].size(), 8u);
  EXPECT_EQ(json["ranks"][7]["experts"]["first"], 224);
  EXPECT_EQ(json["ranks"][7]["attention_dp_rank"], 7);
  EXPECT_EQ(json["layout"]["unique_tokens"], e.layout.unique_tokens);
  EXPECT_EQ(json["layout"]["predictions"].size(), 3u);
  EXPECT_EQ(json["layout"]["wire_bytes_of_step"]["gather"], 0);
  EXPECT_GT(json["layout"]["wire_bytes_of_step"]["dispatch"], 0);
  EXPECT_EQ(json["layout"]["step_row_bytes"], sizeof(parallel::StepRow)) << "by which bench/dpa/wire.py counts";
  EXPECT_EQ(json["best"], layout_flags(e.weighed[0]));
  const std::string text = to_text(e);
  for (const std::string want : {"224-255", "latent", "expert EP: {0,1,2,3,4,5,6,7}", "8.0 times as many unique tokens",
                                 "chunked-prefill-size 8192 -> 1024", "output tokens/s", "Best: "}) {
    EXPECT_NE(text.find(want), std::string::npos) << want << " is not in\n" << text;
  }
}

TEST(ExplainTest, WhatIsWrongIsNamed) {
  const auto message = [](const std::string& model, const std::vector<std::string>& flags) {
    const ExplainArguments given = arguments(model, flags);
    const auto hardware = hardware_of(given.explain, 8);
    if (!hardware.ok()) return hardware.error().message;
    const auto explanation = explain(given.engine, *hardware, kLoad, {1});
    return explanation.ok() ? std::string("none") : explanation.error().message;
  };
  EXPECT_NE(message("DeepSeek-V3", {"--tp", "8", "--dp-size", "3", "--enable-dp-attention", "--hardware", "h200"})
                .find("--dp-size 3 does not divide --tp-size 8; the nearest values that do: 2, 4"),
            std::string::npos);
  EXPECT_NE(message("DeepSeek-V3", {"--tp", "2", "--dp-size", "4", "--enable-dp-attention", "--moe-a2a-backend",
                                    "deepep", "--hardware", "h200"})
                .find("--dp-size 4 does not divide --tp-size 2"),
            std::string::npos);
  EXPECT_NE(message("Llama-3.1-8B-Instruct", {"--tp", "8", "--ep", "8", "--hardware", "h200"}).find("no experts"),
            std::string::npos);
  EXPECT_NE(message("DeepSeek-V3", {"--hardware", "other", "--gpu-memory", "80"}).find("needs --gpu-bandwidth"),
            std::string::npos);
  const ExplainArguments given = arguments("Llama-3.1-8B-Instruct", {"--context-length", "1000", "--hardware", "h200"});
  EXPECT_NE(explain(given.engine, *hardware_of(given.explain, 8), kLoad, {1})
                .error()
                .message.find("--input-len 1024 and --output-len 256 are more than the context of 1000 tokens"),
            std::string::npos);
  EXPECT_EQ(message("no-such-model", {"--hardware", "h200"}).find("none"), std::string::npos);
  const auto numbers = concurrency_of(arguments("DeepSeek-V3", {"--concurrency", "1", "x"}).explain);
  ASSERT_FALSE(numbers.ok());
  EXPECT_NE(numbers.error().message.find("--concurrency: 'x'"), std::string::npos);
  EXPECT_FALSE(parse_explain_arguments({"--hardware", "abacus"}).ok());
}

}  // namespace
}  // namespace sluice::engine
