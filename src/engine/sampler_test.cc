#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "base/rng.h"

namespace sluice::engine {
namespace {

std::vector<float> draw_row(Rng& rng, size_t vocab, double spread) {
  std::vector<float> row(vocab);
  for (auto& x : row) x = static_cast<float>((rng.uniform() + rng.uniform() + rng.uniform() - 1.5) * spread);
  return row;
}

struct Kept {
  int32_t token;
  double probability;  // among the kept ones
};

// The slow twin: everything in double, a full sort, the rules as they are written down.
std::vector<Kept> kept_tokens(const SampleInput& in) {
  const auto& p = *in.params;
  std::vector<double> logits(in.logits.begin(), in.logits.end());
  if (in.counts) {
    for (const auto& [token, count] : *in.counts) {
      double& x = logits[static_cast<size_t>(token)];
      x -= p.frequency_penalty * count;
      x -= p.presence_penalty;
      x = x > 0 ? x / p.repetition_penalty : x * p.repetition_penalty;
    }
  }
  for (const auto& [token, bias] : p.logit_bias) logits[static_cast<size_t>(token)] += bias;
  for (const auto token : in.forbidden) logits[static_cast<size_t>(token)] = -1e300;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const double max = logits[static_cast<size_t>(order[0])];
  std::vector<double> weights;
  for (const auto token : order)
    weights.push_back(std::exp((logits[static_cast<size_t>(token)] - max) / p.temperature));
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<Kept> kept;
  double before = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (p.top_k > 0 && static_cast<int64_t>(i) >= p.top_k) break;
    if (i > 0 && p.top_p < 1 && before / total >= p.top_p) break;
    if (weights[i] < p.min_p) break;
    kept.push_back({order[i], weights[i]});
    before += weights[i];
  }
  for (auto& k : kept) k.probability /= before;
  return kept;
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler;
  SamplingParams params{.temperature = 0};
  const std::vector<float> row{1, 3, 2, 3};
  EXPECT_EQ(sampler.sample({.logits = row, .params = &params}), 1);
  params = {.temperature = 1.0, .top_k = 1};
  EXPECT_EQ(sampler.sample({.logits = row, .params = &params}), 1);
}

TEST(SamplerTest, TheSameSeedAndPositionGiveTheSameToken) {
  Rng rng(/*seed=*/1);
  const auto row = draw_row(rng, 1000, 2);
  const SamplingParams params{.temperature = 1.0};
  std::vector<int32_t> first;
  for (uint64_t position = 0; position < 50; ++position) {
    Sampler sampler;
    first.push_back(sampler.sample({.logits = row, .params = &params, .seed = 7, .position = position}));
  }
  Sampler reused;
  const auto other = draw_row(rng, 1000, 2);
  for (uint64_t position = 50; position-- > 0;) {
    reused.sample({.logits = other, .params = &params, .seed = 8, .position = position});
    EXPECT_EQ(reused.sample({.logits = row, .params = &params, .seed = 7, .position = position}), first[position]);
  }
  EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 20u) << "positions do not vary the draw";
}

TEST(SamplerTest, DrawsOnlyWhatItsSlowTwinKeepsAndAsOften) {
  Rng rng(/*seed=*/2);
  Sampler sampler;
  for (int round = 0; round < 150; ++round) {
    const size_t vocab = 2 + rng.below(400);
    const auto row = draw_row(rng, vocab, 1 + 8 * rng.uniform());
    SamplingParams params{.temperature = 0.2 + 2 * rng.uniform()};
    if (rng.below(2)) params.top_k = 1 + static_cast<int64_t>(rng.below(30));
    if (rng.below(2)) params.top_p = 0.05 + 0.9 * rng.uniform();
    if (rng.below(2)) params.min_p = 0.3 * rng.uniform();
    TokenCounts counts;
    if (rng.below(2)) {
      params.frequency_penalty = rng.uniform() - 0.5;
      params.presence_penalty = rng.uniform() - 0.5;
      params.repetition_penalty = 0.5 + rng.uniform();
      for (int i = 0; i < 10; ++i) ++counts[static_cast<int32_t>(rng.below(vocab))];
    }
    if (rng.below(2)) params.logit_bias[static_cast<int32_t>(rng.below(vocab))] = 4 * rng.uniform();
    std::vector<int32_t> forbidden;
    if (rng.below(2)) forbidden.push_back(static_cast<int32_t>(rng.below(vocab)));
    SampleInput in{.logits = row, .params = &params, .counts = &counts, .forbidden = forbidden, .seed = rng.next()};
    const auto kept = kept_tokens(in);

    constexpr int kDraws = 2000;
    std::vector<int> times(vocab, 0);
    for (int i = 0; i < kDraws; ++i) {
      in.position = static_cast<uint64_t>(i);
      ++times[static_cast<size_t>(sampler.sample(in))];
    }
    double chi_square = 0;
    double rest_expected = kDraws;
    double rest_seen = kDraws;
    int degrees = 0;
    for (const auto& k : kept) {
      const double expected = kDraws * k.probability;
      if (expected < 10) continue;
      const double seen = times[static_cast<size_t>(k.token)];
      chi_square += (seen - expected) * (seen - expected) / expected;
      rest_expected -= expected;
      rest_seen -= seen;
      ++degrees;
    }
    if (rest_expected >= 10) chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    // Mean n, variance 2n: six deviations and a little for rounding at the edge of the nucleus.
    EXPECT_LT(chi_square, degrees + 6 * std::sqrt(2.0 * degrees) + 12) << "round " << round;
    for (const auto& k : kept) times[static_cast<size_t>(k.token)] = 0;
    // Float against double may move the edge of the nucleus by one token.
    EXPECT_LE(std::count_if(times.begin(), times.end(), [](int n) { return n > 0; }), 1) << "round " << round;
  }
}

TEST(SamplerTest, AForbiddenTokenNeverComes) {
  Sampler sampler;
  const std::vector<float> row{0, 100, 1};
  const std::vector<int32_t> forbidden{1};
  SamplingParams params{.temperature = 0};
  EXPECT_EQ(sampler.sample({.logits = row, .params = &params, .forbidden = forbidden}), 2);
  params.temperature = 1;
  for (uint64_t i = 0; i < 200; ++i) {
    EXPECT_NE(sampler.sample({.logits = row, .params = &params, .forbidden = forbidden, .position = i}), 1);
  }
}

TEST(SamplerTest, OnlyAllowedTokensCome) {
  Rng rng{11};
  Sampler sampler;
  for (int round = 0; round < 200; ++round) {
    const auto row = draw_row(rng, 70, 3);
    std::vector<uint32_t> allowed(3, 0);
    for (int i = 0; i < 3; ++i) {
      const auto token = rng.below(70);
      allowed[token / 32] |= uint32_t{1} << (token % 32);
    }
    for (const double temperature : {0.0, 1.0}) {
      SamplingParams params{.temperature = temperature, .top_p = round % 2 ? 1.0 : 0.5};
      params.logit_bias[static_cast<int32_t>(rng.below(70))] = 100;  // does not help a token that is not allowed
      const auto token = static_cast<size_t>(
          sampler.sample({.logits = row, .params = &params, .allowed = allowed, .seed = rng.next(), .position = 0}));
      EXPECT_TRUE(allowed[token / 32] >> (token % 32) & 1) << token;
    }
  }
}

TEST(SamplerTest, OddRowsAreSurvived) {
  Sampler sampler;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> none(20, nan);
  std::vector<float> some(20, nan);
  some[7] = 1;
  SamplingParams params{.temperature = 1.0, .top_p = 0.5};
  EXPECT_EQ(sampler.sample({.logits = none, .params = &params}), 0);
  EXPECT_EQ(sampler.sample({.logits = some, .params = &params}), 7);
  params.top_p = 1;
  EXPECT_EQ(sampler.sample({.logits = some, .params = &params}), 7);
  params.temperature = std::nan("");
  EXPECT_EQ(sampler.sample({.logits = some, .params = &params}), 7);
  params = {.temperature = 1e-5, .top_p = 0.9, .min_p = 1.0};
  EXPECT_EQ(sampler.sample({.logits = some, .params = &params}), 7);
}

TEST(SamplerTest, LogprobsAreTheLogSoftmaxOfTheRawLogits) {
  Rng rng(/*seed=*/3);
  Sampler sampler;
  for (int round = 0; round < 50; ++round) {
    const size_t vocab = 1 + rng.below(3000);
    const auto row = draw_row(rng, vocab, 20 * rng.uniform());
    double sum = 0;
    for (const float x : row) sum += std::exp(static_cast<double>(x));
    const auto want = [&](int32_t token) { return row[static_cast<size_t>(token)] - std::log(sum); };
    const auto chosen = static_cast<int32_t>(rng.below(vocab));
    const std::vector<int32_t> requested{static_cast<int32_t>(rng.below(vocab)), 0};
    const auto got = sampler.logprobs(row, chosen, 5, requested);
    // The sum has a relative error of some 2^-20, and the result is rounded to float.
    EXPECT_NEAR(got.chosen->logprob, want(chosen), 1e-5);
    EXPECT_EQ(got.chosen->token_id, chosen);
    ASSERT_EQ(got.requested.size(), 2u);
    EXPECT_NEAR(got.requested[0].logprob, want(requested[0]), 1e-5);
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)]; });
    ASSERT_EQ(got.top.size(), std::min<size_t>(5, vocab));
    for (size_t i = 0; i < got.top.size(); ++i) {
      EXPECT_EQ(got.top[i].token_id, order[i]);
      EXPECT_NEAR(got.top[i].logprob, want(order[i]), 1e-5);
    }
  }
}

TEST(SamplerTest, ALogitThatIsNoNumberIsNotAmongTheBest) {
  Sampler sampler;
  const float nan = std::nanf("");
  const auto got = sampler.logprobs(std::vector<float>{nan, 1, nan, 3, 2}, 3, 3, {});
  ASSERT_EQ(got.top.size(), 3u);
  for (const size_t i : {0, 1, 2}) EXPECT_EQ(got.top[i].token_id, (std::array{3, 4, 1})[i]);
}

TEST(RandomUnitTest, IsUniformOverSeedsAndPositions) {
  for (const bool by_seed : {true, false}) {
    std::vector<int> buckets(16, 0);
    for (uint64_t i = 0; i < 16'000; ++i) {
      const double u = by_seed ? random_unit(i, 3) : random_unit(3, i);
      ASSERT_TRUE(u >= 0 && u < 1);
      ++buckets[static_cast<size_t>(u * 16)];
    }
    double chi_square = 0;
    for (const int n : buckets) chi_square += (n - 1000.0) * (n - 1000.0) / 1000.0;
    EXPECT_LT(chi_square, 40);  // 15 degrees of freedom, p < 0.0005
  }
}

}  // namespace
}  // namespace sluice::engine
