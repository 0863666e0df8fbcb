// The kernels of lightning attention against their twins in ref/.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/kernel_fixture.h"
#include "kernels/ref/ref.h"

namespace sluice::kernels {
namespace {

class LightningKernelConformance : public KernelConformance {};

struct LightningRun {
  std::vector<float> out, states;
};

// `lens` with `cached` tokens before them, sequence i in row 2 i + 1.
struct LightningCase {
  int64_t heads = 0, dim = 0;
  std::vector<int32_t> rows, starts{0}, lens;
  std::vector<float> qkv, rates, states;

  LightningAttentionArgs args() const { return {.n_seqs = std::ssize(lens), .n_heads = heads, .head_dim = dim}; }
};

LightningRun run_lightning(Device& device, const LightningCase& c) {
  LightningAttentionArgs args = c.args();
  args.qkv = device.put(c.qkv);
  args.rates = device.put(c.rates);
  args.table_rows = device.put(c.rows);
  args.query_start = device.put(c.starts);
  args.seq_lens = device.put(c.lens);
  args.states = device.put(c.states);
  std::vector<float> out(static_cast<size_t>(c.starts.back() * c.heads * c.dim));
  args.out = device.put(out);
  device->lightning_attention(device.context(), args);
  return {device.get(args.out, out.size()), device.get(args.states, c.states.size())};
}

TEST_P(LightningKernelConformance, LightningAttentionStaysWithinItsRoundingBound) {
  for (int round = 0; round < 12; ++round) {
    const int64_t dims[] = {1, 5, 16, 64, 128};
    LightningCase c{.heads = between(1, 3), .dim = dims[rng_.below(5)]};
    constexpr int32_t kRows = 8;
    int64_t longest = 0;
    for (int64_t s = between(0, 3); s > 0; --s) {
      const auto queries = static_cast<int32_t>(rng_.below(2) == 0 ? 1 : between(1, 50));
      c.rows.push_back(2 * static_cast<int32_t>(s) + 1);
      c.starts.push_back(c.starts.back() + queries);
      c.lens.push_back(queries + static_cast<int32_t>(rng_.below(2) == 0 ? 0 : between(1, 9)));
      longest = std::max<int64_t>(longest, queries);
    }
    c.qkv = draw(rng_, c.starts.back() * c.heads * 3 * c.dim, 2);
    for (int64_t h = 0; h < c.heads; ++h) c.rates.push_back(static_cast<float>(rng_.uniform() * 0.9));
    c.states = draw(rng_, kRows * c.heads * c.dim * c.dim);
    const LightningRun got = run_lightning(device_, c);

    LightningRun want{got.out, c.states};
    LightningAttentionArgs args = c.args();
    args.qkv = c.qkv.data();
    args.rates = c.rates.data();
    args.table_rows = c.rows.data();
    args.query_start = c.starts.data();
    args.seq_lens = c.lens.data();
    args.states = want.states.data();
    args.out = want.out.data();
    ref::lightning_attention(args);

    // |q|, |k|, |v| <= 3. A SiLU is off by 8 units (see silu_mul), so a term of the state by 18. The state, which
    // begins at 1.5 at most, is multiplied and added to once per token and its decay is off by 2 units, each of at most
    // its largest size: 4 units per token. A result sums dim of its values times q.
    const double largest = 1.5 + 9 * static_cast<double>(longest);
    const double state_bound = largest * (18 + 4 * static_cast<double>(longest)) * kF32Unit;
    const double out_bound =
        3 * static_cast<double>(c.dim) * (state_bound + largest * (10 + static_cast<double>(c.dim)) * kF32Unit);
    SCOPED_TRACE(fmt::format("heads {} dim {} sequences {}", c.heads, c.dim, c.lens.size()));
    for (size_t i = 0; i < got.out.size(); ++i) ASSERT_NEAR(got.out[i], want.out[i], out_bound) << i;
    for (size_t i = 0; i < got.states.size(); ++i) ASSERT_NEAR(got.states[i], want.states[i], state_bound) << i;
  }
}

TEST_P(LightningKernelConformance, LightningAttentionInPiecesEqualsOnePassBitForBit) {
  const int64_t n = 20;
  LightningCase c{.heads = 2, .dim = 16, .rows = {1}, .starts = {0, n}, .lens = {n}, .rates = {0.1f, 0.7f}};
  c.qkv = draw(rng_, n * 2 * 3 * 16);
  c.states = draw(rng_, 2 * 2 * 16 * 16);
  const LightningRun whole = run_lightning(device_, c);
  LightningCase first = c, second = c;
  first.starts = {0, 7};
  first.lens = {7};
  const LightningRun begun = run_lightning(device_, first);
  second.starts = {0, n - 7};
  second.qkv.erase(second.qkv.begin(), second.qkv.begin() + 7 * 2 * 3 * 16);
  second.states = begun.states;
  const LightningRun ended = run_lightning(device_, second);
  EXPECT_EQ(ended.states, whole.states);
  std::vector<float> out = begun.out;
  out.insert(out.end(), ended.out.begin(), ended.out.end());
  EXPECT_EQ(out, whole.out);
}

TEST_P(LightningKernelConformance, SigmoidMulStaysWithinItsRoundingBound) {
  for (int round = 0; round < 20; ++round) {
    SigmoidMulArgs args{.out_dtype = kDtypes[round % 2], .n = between(0, 40), .width = between(1, 200)};
    const auto gate = draw(rng_, args.n * args.width, round % 8 == 0 ? 100 : 4), in = draw(rng_, args.n * args.width);
    Stored want(args.out_dtype, std::vector<float>(in.size()));
    Stored got = want;
    char* out = device_.put(want.bytes);
    SigmoidMulArgs plain = args;
    plain.gate = gate.data();
    plain.in = in.data();
    plain.out = want.bytes.data();
    ref::sigmoid_mul(plain);
    args.gate = device_.put(gate);
    args.in = device_.put(in);
    args.out = out;
    device_->sigmoid_mul(device_.context(), args);
    got.bytes = device_.get(out, want.bytes.size());
    // As silu_mul, with one product less.
    expect_within([&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; }, args.n * args.width,
                  [&](int64_t at) {
                    return std::abs(want[at]) * (7.1 * kF32Unit + 2.01 * unit_of(args.out_dtype)) +
                           std::abs(in[static_cast<size_t>(at)]) * std::exp(-87);
                  });
  }
}

TEST_P(LightningKernelConformance, ScaleMultipliesExactly) {
  for (const int64_t n : {0, 1, 19}) {
    ScaleArgs args{.by = 1.3f, .n = n, .width = between(1, 90)};
    auto values = draw(rng_, n * args.width);
    ScaleArgs own = args;
    own.values = device_.put(values);
    device_->scale(device_.context(), own);
    args.values = values.data();
    ref::scale(args);
    EXPECT_EQ(device_.get(own.values, values.size()), values);
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, LightningKernelConformance, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace sluice::kernels
