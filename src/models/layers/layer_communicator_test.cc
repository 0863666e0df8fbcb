// How rows come together and are divided again, and that half a layer gives the same whatever its way: against the
// definition x = alpha' x + beta f(RMSNorm(x)), in double, of ranks that each have a summand of f.
#include "models/layers/layer_communicator.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <thread>

#include "base/rng.h"
#include "parallel/inproc.h"

namespace sluice::models {
namespace {

using parallel::Layout;

constexpr int64_t kHidden = 24, kMostTokens = 12;

std::vector<int64_t> random_tokens(Rng& rng, int64_t groups) {
  std::vector<int64_t> tokens;
  for (int64_t group = 0; group < groups; ++group) {
    tokens.push_back(rng.below(4) == 0 ? 0 : static_cast<int64_t>(rng.below(kMostTokens + 1)));
  }
  return tokens;
}

TEST(RowsTest, OfGroupsFollowEachOtherAndAreDividedAmongTheirMembers) {
  Rng rng(3);
  for (int round = 0; round < 2000; ++round) {
    const auto groups = static_cast<int64_t>(1 + rng.below(8)), members = static_cast<int64_t>(1 + rng.below(5));
    const auto tokens = random_tokens(rng, groups);
    const auto rows = scattered_rows(tokens, members);
    ASSERT_EQ(std::ssize(rows), groups * members);
    int64_t next = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const parallel::Slice of_group = rows_of_group(tokens, group);
      ASSERT_EQ(of_group.first, next);
      ASSERT_EQ(of_group.count, tokens[static_cast<size_t>(group)]);
      const auto parts = std::span(rows).subspan(static_cast<size_t>(group * members), static_cast<size_t>(members));
      ASSERT_EQ(std::accumulate(parts.begin(), parts.end(), int64_t{0}), of_group.count) << "each row has one rank";
      ASSERT_LE(parts.front() - parts.back(), 1) << "as equal as can be";
      // Where a rank looks for its rows, by its place, is where the parts before it end.
      int64_t first = 0;
      for (int64_t member = 0; member < members; ++member) {
        const parallel::Slice own = parallel::part_of(of_group.count, {member, members});
        ASSERT_EQ(own.first, first);
        ASSERT_EQ(own.count, parts[static_cast<size_t>(member)]);
        first = own.end();
      }
      next = of_group.end();
    }
    ASSERT_EQ(std::accumulate(tokens.begin(), tokens.end(), int64_t{0}), next);
  }
}

TEST(JoiningTest, FollowsFromTheSpreadAndWhetherGroupsHaveTokensOfTheirOwn) {
  const auto of = [](Spread spread, int64_t tp, int64_t dp) {
    const parallel::Groups groups{.layout = {.tp_size = tp, .dp_size = dp}};
    return joining_of(spread, &groups);
  };
  EXPECT_EQ(joining_of(Spread::kAllTokens, nullptr), Joining::kAlone);
  for (const int64_t dp : {1, 2, 4}) {
    EXPECT_EQ(of(Spread::kAttention, 4, dp), Joining::kGroupSum);
    EXPECT_EQ(of(Spread::kOwnTokens, 4, dp), Joining::kOwnRows);
    EXPECT_EQ(of(Spread::kAllTokens, 4, dp), dp == 1 ? Joining::kSum : Joining::kGather);
  }
}

class NormWeight final : public tensor::TensorSource {
 public:
  explicit NormWeight(Rng& rng) {
    for (int64_t i = 0; i < kHidden; ++i) values.push_back(static_cast<float>(0.5 + rng.uniform()));
  }
  Result<tensor::StoredTensor> find(std::string_view name) const override {
    return tensor::StoredTensor{std::string(name), kernels::DType::kF32, {kHidden}, std::as_bytes(std::span(values))};
  }
  bool has(std::string_view) const override { return true; }
  std::vector<float> values;
};

// f(x)_ij = share (j + 1) x_ij, of which other ranks have other shares.
class Summand final : public Block {
 public:
  Summand(Residual residual, Spread spread, double share)
      : Block(std::move(residual), spread), share_(static_cast<float>(share)) {}
  Result<void> run(const kernels::Context&, const Step&, const void* x, int64_t n, float* out) const override {
    rows += n;
    for (int64_t i = 0; i < n * kHidden; ++i) {
      out[i] += share_ * static_cast<float>(i % kHidden + 1) * static_cast<const float*>(x)[i];
    }
    return {};
  }
  mutable int64_t rows = 0;  // that it was given

 private:
  const float share_;
};

struct Way {
  Layout layout;
  Spread spread;
  bool weighted;
  bool fixed = false;  // groups are filled up to one length
};

class LayerCommunicatorTest : public testing::TestWithParam<Way> {};

TEST_P(LayerCommunicatorTest, GivesTheNewStreamOnAllRanksOfAGroup) {
  const auto& [layout, spread, weighted, fixed] = GetParam();
  Rng rng(static_cast<uint64_t>(layout.tp_size * 10 + layout.dp_size));
  const NormWeight norm(rng);
  const ModelConfig config{.hidden_size = kHidden};
  const std::optional<ResidualScale> scale = weighted ? std::optional(ResidualScale{1.5, 0.75}) : std::nullopt;
  // Who adds up a row: a rank alone, its group, or all.
  const int64_t members = layout.attention_tp_size();
  const auto share_of = [&](int64_t rank) {
    return spread == Spread::kOwnTokens ? 1.0 : 0.25 * static_cast<double>(rank + 1);
  };
  std::vector<std::vector<int64_t>> rounds{std::vector<int64_t>(static_cast<size_t>(layout.dp_size), 0)};
  for (int round = 0; round < 12; ++round) rounds.push_back(random_tokens(rng, layout.dp_size));
  std::vector<std::vector<std::vector<float>>> streams;  // [round][group][row * kHidden]
  for (const auto& tokens : rounds) {
    auto& groups = streams.emplace_back();
    for (const int64_t n : tokens) {
      auto& stream = groups.emplace_back();
      for (int64_t i = 0; i < n * kHidden; ++i) stream.push_back(static_cast<float>(4 * rng.uniform() - 2));
    }
  }

  auto world = parallel::make_inproc_group(static_cast<int>(layout.tp_size));
  std::vector<std::thread> threads;
  for (int64_t rank = 0; rank < layout.tp_size; ++rank) {
    threads.emplace_back([&, rank] {
      Layout own = layout;
      own.tp_rank = rank;
      auto made = parallel::make_groups(*world[static_cast<size_t>(rank)], own);
      ASSERT_TRUE(made.ok()) << made.error().message;
      const parallel::Groups groups = std::move(*made);
      const auto backend = kernels::make_backend("cpu", 1).value();
      const auto queue = backend->make_stream();
      const kernels::Context context{backend.get(), queue.get()};
      WeightStore store(*backend, kernels::DType::kF32, nullptr, &groups);
      Scratch scratch(*backend);
      const LayerCommunicator communicator(config, store, scratch);
      const Summand block(Residual("norm", config, scale, store), spread, share_of(rank));
      ASSERT_TRUE(store.materialise(norm, context, {}, {}).ok());
      ASSERT_TRUE(scratch.allocate(kMostTokens).ok());
      const KvCache kv(*backend, kernels::DType::kF32);
      const StateCache states(*backend);
      const int64_t group = own.attention_dp().rank;
      for (size_t round = 0; round < rounds.size(); ++round) {
        SCOPED_TRACE(fmt::format("rank {}, tokens {}", rank, fmt::join(rounds[round], " ")));
        const auto& before = streams[round][static_cast<size_t>(group)];
        const int64_t n = rounds[round][static_cast<size_t>(group)];
        ForwardBatch batch{.n_tokens = n};
        if (own.dp_attention()) batch.group_tokens = rounds[round];
        const int64_t most = std::ranges::max(rounds[round]), more = static_cast<int64_t>(round % 2);
        if (fixed) batch.padded_rows = std::min(most + more, kMostTokens);
        std::vector<float> hidden = before;
        hidden.resize(static_cast<size_t>(backend->padded_rows(kMostTokens) * kHidden));
        block.rows = 0;
        const auto ran = communicator.run(
            context, {.batch = batch, .kv = kv, .states = states, .scratch = scratch, .groups = &groups}, block,
            hidden.data());
        ASSERT_TRUE(ran.ok()) << ran.error().message;

        const std::vector<int64_t> together = gathered_rows(rounds[round], batch.padded_rows);
        const int64_t all = std::accumulate(together.begin(), together.end(), int64_t{0});
        const int64_t computed = spread == Spread::kAttention   ? n
                                 : spread == Spread::kAllTokens ? all
                                                                : parallel::part_of(n, own.attention_tp()).count;
        EXPECT_EQ(block.rows, computed);
        double shares = 0;
        for (int64_t other = 0; other < layout.tp_size; ++other) {
          const bool adds = spread == Spread::kAllTokens || other / members == group;
          if (adds) shares += share_of(other);
        }
        if (spread == Spread::kOwnTokens) shares = 1;
        for (int64_t row = 0; row < n; ++row) {
          const float* x = before.data() + row * kHidden;
          double squares = 0;
          for (int64_t j = 0; j < kHidden; ++j) squares += static_cast<double>(x[j]) * x[j];
          const double size = std::sqrt(squares / kHidden + config.rms_norm_eps);
          for (int64_t j = 0; j < kHidden; ++j) {
            const double normed = x[j] / size * norm.values[static_cast<size_t>(j)];
            const double f = shares * static_cast<double>(j + 1) * normed;
            const double want = scale ? scale->alpha * normed + scale->beta * f : x[j] + f;
            // Up to eight roundings of summands that are no larger than the sum of their sizes.
            const double tolerance = 8 * 0x1p-24 * (std::abs(f) + std::abs(normed) * 2 + std::abs(x[j]));
            ASSERT_NEAR(hidden[static_cast<size_t>(row * kHidden + j)], want, tolerance) << "row " << row << ", " << j;
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<Way> ways() {
  std::vector<Way> all;
  for (const auto& [tp, dp] : {std::pair<int64_t, int64_t>{1, 1}, {2, 1}, {3, 1}, {2, 2}, {4, 2}, {6, 2}, {4, 4}}) {
    for (const Spread spread : {Spread::kAttention, Spread::kAllTokens, Spread::kOwnTokens}) {
      for (const bool weighted : {false, true}) all.push_back({{.tp_size = tp, .dp_size = dp}, spread, weighted});
    }
    if (dp == 1) continue;
    for (const bool weighted : {false, true}) {
      all.push_back({{.tp_size = tp, .dp_size = dp}, Spread::kAllTokens, weighted, /*fixed=*/true});
    }
  }
  return all;
}

std::string name_of(const Way& way) {
  const char* const spreads[] = {"attention", "all_tokens", "own_tokens"};
  return fmt::format("tp{}dp{}_{}{}{}", way.layout.tp_size, way.layout.dp_size,
                     spreads[static_cast<size_t>(way.spread)], way.weighted ? "_weighted" : "",
                     way.fixed ? "_fixed" : "");
}

INSTANTIATE_TEST_SUITE_P(Ways, LayerCommunicatorTest, testing::ValuesIn(ways()),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace sluice::models
