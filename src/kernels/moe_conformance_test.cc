// The kernels of a mixture of experts against their twins in ref/: choice, order, products and sums.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/kernel_fixture.h"
#include "kernels/ref/ref.h"

namespace sluice::kernels {
namespace {

class MoeKernelConformance : public KernelConformance {};

struct Router {
  std::string_view name;
  RouteArgs args;
  bool bias = false;
};

// Those of the published models, and small odd ones.
std::vector<Router> routers() {
  constexpr auto kSigmoid = RouterScore::kSigmoid;
  constexpr auto kTwo = GroupScore::kBestTwo;
  return {
      {"Qwen3-MoE", {.experts = 128, .top_k = 8, .renormalise = true}},
      {"Qwen3-MoE without renormalisation", {.experts = 128, .top_k = 8}},
      {"DeepSeek-V2", {.experts = 160, .top_k = 6, .groups = 8, .kept_groups = 3, .scale = 16}},
      {"DeepSeek-V2-Lite", {.experts = 64, .top_k = 6}},
      {"DeepSeek-V3",
       {.experts = 256,
        .top_k = 8,
        .score = kSigmoid,
        .groups = 8,
        .kept_groups = 4,
        .group_score = kTwo,
        .renormalise = true,
        .scale = 2.5f},
       true},
      {"Kimi-K2",
       {.experts = 384, .top_k = 8, .score = kSigmoid, .group_score = kTwo, .renormalise = true, .scale = 2.827f},
       true},
      {"MiniMax-M2", {.experts = 256, .top_k = 8, .score = kSigmoid, .renormalise = true}, true},
      {"MiniMax-Text-01", {.experts = 32, .top_k = 2, .renormalise = true}},
      {"one expert", {.experts = 1, .top_k = 1}},
      {"all experts", {.experts = 5, .top_k = 5, .score = kSigmoid}, true},
      {"groups of one", {.experts = 6, .top_k = 2, .groups = 6, .kept_groups = 3, .group_score = kTwo}},
      {"all of the kept groups", {.experts = 12, .top_k = 6, .groups = 4, .kept_groups = 2}, true},
  };
}

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights, margins;
};

Routed run_route(Device& device, RouteArgs args, const std::vector<float>& logits, const std::vector<float>& bias) {
  const auto pairs = static_cast<size_t>(args.n * args.top_k), rows = static_cast<size_t>(args.n);
  args.logits = device.put(logits);
  args.bias = bias.empty() ? nullptr : device.put(bias);
  args.ids = device.put(std::vector<int32_t>(pairs, -7));
  args.weights = device.put(std::vector<float>(pairs, kNan));
  args.margins = device.put(std::vector<float>(rows, kNan));
  device->route(device.context(), args);
  return {device.get(args.ids, pairs), device.get(args.weights, pairs), device.get(args.margins, rows)};
}

// What the twin makes of it; pointers of `args` beside those to what is drawn are of host memory.
Routed route_by_twin(RouteArgs args, const std::vector<float>& logits, const std::vector<float>& bias) {
  const auto pairs = static_cast<size_t>(args.n * args.top_k), rows = static_cast<size_t>(args.n);
  Routed routed{std::vector<int32_t>(pairs, -7), std::vector<float>(pairs, kNan), std::vector<float>(rows, kNan)};
  args.logits = logits.data();
  args.bias = bias.empty() ? nullptr : bias.data();
  args.ids = routed.ids.data();
  args.weights = routed.weights.data();
  args.margins = routed.margins.data();
  ref::route(args);
  return routed;
}

TEST_P(MoeKernelConformance, RouteChoosesAndWeighsAsItsTwin) {
  int64_t rows = 0, ties = 0;
  for (const Router& router : routers()) {
    SCOPED_TRACE(router.name);
    for (const int64_t n : {0, 1, 40}) {
      RouteArgs args = router.args;
      args.n = n;
      const double spread = 4;
      const auto logits = draw(rng_, n * args.experts, spread);
      const auto bias = router.bias ? draw(rng_, args.experts, 0.2) : std::vector<float>();
      const Routed got = run_route(device_, args, logits, bias);
      const Routed want = route_by_twin(args, logits, bias);

      // A sigmoid is an exponential (2 units), a sum and a quotient. A softmax is an exponential of a difference that
      // is off by a unit of its size, at most 3 spread, over a sum of as many as there are experts. All are at most 1.
      const double score_units =
          args.score == RouterScore::kSigmoid ? 5 : static_cast<double>(args.experts) + 6 + 3 * spread;
      // For the choice the bias is added, and two of them for a group; a difference of two is looked at.
      const double near_tie = 2 * (2 * score_units + 4) * kF32Unit;
      const double weight_units = 2 * score_units + static_cast<double>(args.top_k) + 4;
      for (int64_t i = 0; i < n; ++i) {
        const auto row = static_cast<size_t>(i);
        ++rows;
        if (want.margins[row] <= near_tie) {
          ++ties;
          continue;
        }
        if (std::isinf(want.margins[row])) {
          EXPECT_EQ(got.margins[row], want.margins[row]);
        } else {
          EXPECT_NEAR(got.margins[row], want.margins[row], near_tie);
        }
        for (int64_t k = 0; k < args.top_k; ++k) {
          // Equal chosen experts may stand in another order when their scores are nearly equal.
          const auto begin = want.ids.begin() + i * args.top_k;
          const auto at = static_cast<size_t>(i * args.top_k + k);
          const auto same = std::find(begin, begin + args.top_k, got.ids[at]);
          ASSERT_NE(same, begin + args.top_k) << "row " << i << " goes to expert " << got.ids[at];
          const float weight = want.weights[static_cast<size_t>(same - want.ids.begin())];
          EXPECT_NEAR(got.weights[at], weight, std::abs(weight) * 1.01 * weight_units * kF32Unit);
        }
      }
    }
  }
  EXPECT_LT(ties, rows / 10) << "near ties of the drawn scores excuse too much";
}

TEST_P(MoeKernelConformance, RouteWeighsAForcedChoice) {
  for (const Router& router : routers()) {
    SCOPED_TRACE(router.name);
    RouteArgs args = router.args;
    args.n = 5;
    const auto logits = draw(rng_, args.n * args.experts, 4);
    const auto bias = router.bias ? draw(rng_, args.experts, 0.2) : std::vector<float>();
    std::vector<int32_t> forced;
    for (int64_t i = 0; i < args.n * args.top_k; ++i)
      forced.push_back(static_cast<int32_t>(between(0, args.experts - 1)));
    const Routed own = run_route(device_, args, logits, bias);
    args.forced = device_.put(forced);
    const Routed got = run_route(device_, args, logits, bias);
    EXPECT_EQ(got.ids, own.ids);
    EXPECT_EQ(got.margins, own.margins);
    args.forced = forced.data();
    const Routed want = route_by_twin(args, logits, bias);
    // As in RouteChoosesAndWeighsAsItsTwin.
    const double units = 2 * (static_cast<double>(args.experts) + 18) + static_cast<double>(args.top_k) + 4;
    for (size_t i = 0; i < forced.size(); ++i) {
      EXPECT_NEAR(got.weights[i], want.weights[i], std::abs(want.weights[i]) * 1.01 * units * kF32Unit);
    }
  }
}

TEST_P(MoeKernelConformance, RouteSendsRowsThatFillAGroupUpNowhere) {
  const std::vector<int32_t> group_rows{2, 0, 4};
  for (const Router& router : routers()) {
    SCOPED_TRACE(router.name);
    RouteArgs args = router.args;
    args.n = 12;
    const auto logits = draw(rng_, args.n * args.experts, 4);
    const auto bias = router.bias ? draw(rng_, args.experts, 0.2) : std::vector<float>();
    Routed want = run_route(device_, args, logits, bias);
    for (int64_t i = 0; i < args.n; ++i) {
      if (i % 4 < group_rows[static_cast<size_t>(i / 4)]) continue;
      std::fill_n(want.ids.begin() + i * args.top_k, args.top_k, -1);
      std::fill_n(want.weights.begin() + i * args.top_k, args.top_k, 0.0f);
      want.margins[static_cast<size_t>(i)] = 0;
    }
    args.group_rows = device_.put(group_rows);
    args.padded_rows = 4;
    const Routed got = run_route(device_, args, logits, bias);
    EXPECT_EQ(got.ids, want.ids);
    EXPECT_EQ(got.weights, want.weights);
    EXPECT_EQ(got.margins, want.margins);

    args.group_rows = group_rows.data();
    const Routed twin = route_by_twin(args, logits, bias);
    for (size_t p = 0; p < twin.ids.size(); ++p) {
      EXPECT_EQ(twin.ids[p] < 0, want.ids[p] < 0) << "pair " << p;
      EXPECT_EQ(twin.weights[p] == 0, want.weights[p] == 0) << "pair " << p;
    }
  }
}

TEST_P(MoeKernelConformance, RouteTakesTheLowerOfEqualExperts) {
  const std::vector<float> logits(16, 0.5f);
  const Routed got = run_route(device_, {.n = 2, .experts = 8, .top_k = 3, .groups = 4, .kept_groups = 2}, logits, {});
  EXPECT_EQ(got.ids, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(got.margins, (std::vector<float>{0, 0}));
}

TEST_P(MoeKernelConformance, RouteOfScoresThatAreNoNumbersSendsNowhere) {
  std::vector<float> logits(8, kNan);
  std::fill(logits.begin() + 4, logits.end(), -1e30f);  // all sigmoids underflow
  const RouteArgs args{.n = 2,
                       .experts = 4,
                       .top_k = 2,
                       .score = RouterScore::kSigmoid,
                       .groups = 2,
                       .kept_groups = 1,
                       .renormalise = true};
  const Routed got = run_route(device_, args, logits, {});
  EXPECT_EQ(got.ids, (std::vector<int32_t>{-1, -1, 0, 1}));
  EXPECT_EQ(got.weights, (std::vector<float>{0, 0, 0, 0}));
}

// Pairs of tokens and experts, some of nobody, sorted on the device.
struct Sorted {
  int64_t experts = 0;
  std::vector<int32_t> ids, starts, counts, rows;
  std::vector<int64_t> loads;
  int64_t first = 0;
  int64_t capacity = 0;  // rows of a buffer
  int32_t *device_starts = nullptr, *device_counts = nullptr, *device_rows = nullptr;
};

Sorted run_sort(Device& device, std::vector<int32_t> ids, int64_t experts, int64_t first = 0) {
  Sorted s{.experts = experts, .ids = std::move(ids), .first = first};
  const auto pairs = static_cast<int64_t>(s.ids.size());
  s.capacity = pairs + device->group_padding(experts);
  s.device_starts = device.put(std::vector<int32_t>(static_cast<size_t>(experts), -7));
  s.device_counts = device.put(std::vector<int32_t>(static_cast<size_t>(experts), -7));
  s.device_rows = device.put(std::vector<int32_t>(s.ids.size(), -7));
  int64_t* loads = device.put(std::vector<int64_t>(static_cast<size_t>(experts), 1000));
  device->sort_by_expert(device.context(), {.ids = device.put(s.ids),
                                            .starts = s.device_starts,
                                            .counts = s.device_counts,
                                            .rows = s.device_rows,
                                            .loads = loads,
                                            .n_pairs = pairs,
                                            .first = first,
                                            .experts = experts});
  s.starts = device.get(s.device_starts, static_cast<size_t>(experts));
  s.counts = device.get(s.device_counts, static_cast<size_t>(experts));
  s.rows = device.get(s.device_rows, s.ids.size());
  s.loads = device.get(loads, static_cast<size_t>(experts));
  return s;
}

// `busy`: the share of pairs that go to expert 0.
std::vector<int32_t> draw_pairs(Rng& rng, int64_t n_pairs, int64_t experts, double busy) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n_pairs; ++i) {
    ids.push_back(rng.uniform() < busy ? 0 : static_cast<int32_t>(rng.below(static_cast<uint64_t>(experts) + 1)) - 1);
  }
  return ids;
}

TEST_P(MoeKernelConformance, SortByExpertGivesEachItsRowsInOrderWithRoomToSpare) {
  for (const int64_t n_pairs : {0, 1, 16, 17, 40, 700}) {
    for (const int64_t experts : {1, 3, 64}) {
      // Some pairs are of experts before these and after them.
      const int64_t first = between(0, 2);
      const Sorted got = run_sort(device_, draw_pairs(rng_, n_pairs, experts + 4, 0.3), experts, first);
      Sorted want = got;
      std::fill(want.loads.begin(), want.loads.end(), 1000);
      ref::sort_by_expert({.ids = got.ids.data(),
                           .starts = want.starts.data(),
                           .counts = want.counts.data(),
                           .rows = want.rows.data(),
                           .loads = want.loads.data(),
                           .n_pairs = n_pairs,
                           .first = first,
                           .experts = experts});
      EXPECT_EQ(got.counts, want.counts);
      EXPECT_EQ(got.loads, want.loads);
      int64_t end = 0;
      for (int64_t e = 0; e < experts; ++e) {
        EXPECT_GE(got.starts[static_cast<size_t>(e)], end) << "expert " << e << " begins within the one before";
        end = got.starts[static_cast<size_t>(e)] + device_->padded_rows(got.counts[static_cast<size_t>(e)]);
      }
      EXPECT_LE(end, got.capacity);
      for (size_t i = 0; i < got.ids.size(); ++i) {
        if (got.ids[i] < first || got.ids[i] >= first + experts) {
          EXPECT_EQ(got.rows[i], -1);
          continue;
        }
        const auto e = static_cast<size_t>(got.ids[i] - first);
        EXPECT_EQ(got.rows[i] - got.starts[e], want.rows[i] - want.starts[e]);
      }
    }
  }
}

TEST_P(MoeKernelConformance, ChooseCopiesChoosesAsItsTwin) {
  for (const bool random : {false, true}) {
    const int64_t n = 400, top_k = 3, experts = 5, width = 4, pairs = n * top_k;
    // Expert e has 1 + e % width copies.
    std::vector<int32_t> copies(static_cast<size_t>(experts * width), -1);
    for (int64_t e = 0, next = 0; e < experts; ++e) {
      for (int64_t k = 0; k <= e % width; ++k)
        copies[static_cast<size_t>(e * width + k)] = static_cast<int32_t>(next++);
    }
    const std::vector<int32_t> ids = draw_pairs(rng_, pairs, experts, 0);
    int32_t* out = device_.put(std::vector<int32_t>(ids.size(), -7));
    ChooseCopiesArgs args{.ids = device_.put(ids),
                          .copies = device_.put(copies),
                          .out = out,
                          .n = n,
                          .top_k = top_k,
                          .width = width,
                          .random = random,
                          .seed = 99};
    device_->choose_copies(device_.context(), args);
    const std::vector<int32_t> got = device_.get(out, ids.size());
    std::vector<int32_t> want(ids.size());
    args.ids = ids.data();
    args.copies = copies.data();
    args.out = want.data();
    ref::choose_copies(args);
    EXPECT_EQ(got, want);
    // Each copy gets about its share: expert 3 has four, to which some 240 pairs go.
    std::vector<int> times(11);
    for (const int32_t copy : got) {
      if (copy >= 0) ++times[static_cast<size_t>(copy)];
    }
    for (size_t copy = 6; copy < 10; ++copy) EXPECT_GT(times[copy], 20) << copy;
  }
}

TEST_P(MoeKernelConformance, ScatterRowsCopiesExactly) {
  for (const DType dtype : kDtypes) {
    const int64_t n = 20, copies = 3, width = between(1, 70), m = 80;
    std::vector<int32_t> rows(static_cast<size_t>(m));
    std::iota(rows.begin(), rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), rng_);
    rows.resize(static_cast<size_t>(n * copies));
    rows[4] = -1;
    const Stored in(dtype, draw(rng_, n * width));
    Stored out(dtype, draw(rng_, m * width));
    char* on_device = device_.put(out.bytes);
    ScatterRowsArgs args{.in = device_.put(in.bytes),
                         .rows = device_.put(rows),
                         .out = on_device,
                         .dtype = dtype,
                         .n = n,
                         .copies = copies,
                         .width = width};
    device_->scatter_rows(device_.context(), args);
    args.in = in.bytes.data();
    args.rows = rows.data();
    args.out = out.bytes.data();
    ref::scatter_rows(args);
    EXPECT_EQ(device_.get(on_device, out.bytes.size()), out.bytes);
  }
}

TEST_P(MoeKernelConformance, RowsArePackedAndUnpackedAsTheReferenceDoes) {
  for (const DType dtype : kDtypes) {
    for (const int64_t group : {1, 16, 48, 128}) {
      const int64_t n = 9;
      const KvRow row{.dtype = DType::kF8E4M3, .width = 3 * group, .group = group};
      auto values = draw(rng_, n * row.width, 3);
      std::fill_n(values.begin(), row.width, 0.0f);
      values[static_cast<size_t>(row.width)] = kNan;
      const Stored in(dtype, values);
      std::vector<char> want(static_cast<size_t>(n * row.bytes())), wide(in.bytes.size());
      ref::pack_rows({.in = in.bytes.data(), .out = want.data(), .dtype = dtype, .row = row, .n = n});
      ref::unpack_rows({.in = want.data(), .out = wide.data(), .dtype = dtype, .row = row, .n = n});
      char* packed = device_.put(std::vector<char>(want.size()));
      char* unpacked = device_.put(std::vector<char>(wide.size()));
      device_->pack_rows(device_.context(),
                         {.in = device_.put(in.bytes), .out = packed, .dtype = dtype, .row = row, .n = n});
      device_->unpack_rows(device_.context(), {.in = packed, .out = unpacked, .dtype = dtype, .row = row, .n = n});
      Stored got = in, expected = in;
      got.bytes = device_.get(unpacked, wide.size());
      expected.bytes = wide;
      for (int64_t i = 0; i < n * row.width; ++i) {
        const double sent = in[i];
        if (std::isnan(expected[i])) {
          ASSERT_TRUE(std::isnan(got[i])) << i;
          continue;
        }
        // A value in the middle of two may be rounded to either, after the scale that is rounded too.
        double top = 0;
        for (int64_t j = i / group * group; j < (i / group + 1) * group; ++j) top = std::max(top, std::abs(in[j]));
        const double step = std::max(std::abs(sent) * 0x1p-4, top / 448 * 0x1p-10) + std::abs(sent) * unit_of(dtype);
        ASSERT_LE(std::abs(got[i] - sent), step * (1 + 0x1p-18)) << i;
        ASSERT_LE(std::abs(expected[i] - sent), step * (1 + 0x1p-18)) << i;
      }
    }
  }
}

TEST_P(MoeKernelConformance, CombineRowsStaysWithinItsRoundingBound) {
  for (const auto& [n, weighted] : {std::pair<int64_t, bool>{0, true}, {1, true}, {33, true}, {33, false}}) {
    CombineRowsArgs args{.n = n, .copies = 6, .width = between(1, 150)};
    const int64_t m = 40;
    const auto in = draw(rng_, m * args.width);
    const auto weights = draw(rng_, n * args.copies, 2);
    const auto before = draw(rng_, n * args.width);
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < n * args.copies; ++i) rows.push_back(static_cast<int32_t>(between(-1, m - 1)));
    CombineRowsArgs own = args;
    own.in = device_.put(in);
    own.rows = device_.put(rows);
    own.weights = weighted ? device_.put(weights) : nullptr;
    own.out = device_.put(before);
    device_->combine_rows(device_.context(), own);
    const auto got = device_.get(own.out, before.size());
    auto want = before;
    args.in = in.data();
    args.rows = rows.data();
    args.weights = weighted ? weights.data() : nullptr;
    args.out = want.data();
    ref::combine_rows(args);
    // A product and a sum for each copy; the terms are at most 1.5 * 3, what they are added to at most 1.5.
    const double terms = static_cast<double>(args.copies) * 4.5 + 1.5;
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i], want[i], static_cast<double>(args.copies + 1) * kF32Unit * terms);
    }
  }
}

TEST_P(MoeKernelConformance, SiluMulOfChosenRowsLeavesTheOthers) {
  const int64_t m = 30, width = 37;
  const auto in = draw(rng_, m * 2 * width, 4);
  const std::vector<int32_t> rows = {29, -1, 3, 4, 0};
  std::vector<float> all(static_cast<size_t>(m * width), 7), chosen = all;
  SiluMulArgs args{.gate_up = device_.put(in), .out = device_.put(all), .n = m, .width = width};
  device_->silu_mul(device_.context(), args);
  const auto whole = device_.get(static_cast<float*>(args.out), all.size());
  args.out = device_.put(chosen);
  args.n = std::ssize(rows);
  args.rows = device_.put(rows);
  device_->silu_mul(device_.context(), args);
  const auto got = device_.get(static_cast<float*>(args.out), all.size());
  for (int64_t r = 0; r < m; ++r) {
    const bool meant = std::find(rows.begin(), rows.end(), r) != rows.end();
    for (int64_t j = 0; j < width; ++j) {
      const auto at = static_cast<size_t>(r * width + j);
      EXPECT_EQ(got[at], meant ? whole[at] : 7.0f) << "row " << r;
    }
  }
}

// Weights of all experts in one block, packed each for itself.
struct Experts {
  LinearShape shape;
  int64_t count = 0;
  size_t stride = 0;
  std::vector<char> packed;
  std::vector<Stored> values;  // [out, in] of each
};

Experts draw_experts(Device& device, Rng& rng, const LinearShape& shape, int64_t count) {
  Experts experts{.shape = shape, .count = count};
  experts.stride = (device->packed_bytes(shape) + 63) / 64 * 64;
  experts.packed.resize(experts.stride * static_cast<size_t>(count));
  for (int64_t e = 0; e < count; ++e) {
    const size_t row = tensor::bytes_of(shape.stored, static_cast<size_t>(shape.in));
    std::vector<char> stored(row * static_cast<size_t>(shape.out));
    std::vector<float> values = draw(rng, shape.out * shape.in, 0.1);
    if (shape.stored == DType::kF32) {
      std::memcpy(stored.data(), values.data(), stored.size());
    } else {  // Q8_0: a scale in half precision, then 32 whole numbers
      for (char& byte : stored) byte = static_cast<char>(rng.below(256));
      for (size_t at = 1; at < stored.size(); at += tensor::block_bytes(shape.stored)) stored[at] = 0x20;
      tensor::to_float(shape.stored, stored.data(), values.size(), values.data());
    }
    experts.values.emplace_back(shape.dtype, values);
    device->pack(
        shape,
        [&](int64_t first, int64_t n, void* to) {
          std::memcpy(to, stored.data() + static_cast<size_t>(first) * row, static_cast<size_t>(n) * row);
        },
        experts.packed.data() + static_cast<size_t>(e) * experts.stride);
  }
  return experts;
}

std::vector<float> run_grouped(Device& device, const Experts& experts, const Sorted& sorted, const Stored& in) {
  std::vector<float> out(static_cast<size_t>(sorted.capacity * experts.shape.out), 7);
  float* result = device.put(out);
  device->grouped_linear(device.context(), {.shape = &experts.shape,
                                            .weights = device.put(experts.packed),
                                            .weight_stride = experts.stride,
                                            .in = device.put(in.bytes),
                                            .starts = sorted.device_starts,
                                            .counts = sorted.device_counts,
                                            .out = result,
                                            .experts = experts.count});
  return device.get(result, out.size());
}

TEST_P(MoeKernelConformance, GroupedLinearStaysWithinItsRoundingBound) {
  for (const DType stored : {DType::kF32, DType::kQ8_0}) {
    for (const DType dtype : kDtypes) {
      if (stored != DType::kF32 && !device_->keeps({.in = 32, .dtype = dtype, .stored = stored})) continue;
      if (!device_->multiplies(dtype)) continue;
      for (const int64_t n_pairs : {0, 1, 30, 700}) {
        const LinearShape shape{.in = 32 * between(1, 4), .out = between(1, 200), .dtype = dtype, .stored = stored};
        const int64_t count = between(1, 9);
        const Experts experts = draw_experts(device_, rng_, shape, count);
        const Sorted sorted = run_sort(device_, draw_pairs(rng_, n_pairs, count, 0.5), count);
        std::vector<float> values(static_cast<size_t>(sorted.capacity * shape.in), kNan);  // padding reaches no row
        for (size_t i = 0; i < sorted.rows.size(); ++i) {
          if (sorted.rows[i] < 0) continue;
          const auto row = draw(rng_, shape.in, 3);
          std::copy(row.begin(), row.end(), values.begin() + sorted.rows[i] * shape.in);
        }
        const Stored in(dtype, values);
        const auto got = run_grouped(device_, experts, sorted, in);

        std::vector<char> plain;
        for (const Stored& value : experts.values) plain.insert(plain.end(), value.bytes.begin(), value.bytes.end());
        std::vector<float> want = got;
        const LinearShape plain_shape{.in = shape.in, .out = shape.out, .dtype = dtype};
        ref::grouped_linear({.shape = &plain_shape,
                             .weights = plain.data(),
                             .weight_stride = experts.values[0].bytes.size(),
                             .in = in.bytes.data(),
                             .starts = sorted.starts.data(),
                             .counts = sorted.counts.data(),
                             .out = want.data(),
                             .experts = count});
        SCOPED_TRACE(fmt::format("pairs {} experts {} in {} out {} {} {}", n_pairs, count, shape.in, shape.out,
                                 tensor::to_string(dtype), tensor::to_string(stored)));
        for (size_t i = 0; i < sorted.rows.size(); ++i) {
          const int64_t row = sorted.rows[i];
          if (row < 0) continue;
          const Stored& weight = experts.values[static_cast<size_t>(sorted.ids[i])];
          const double in_norm = norm(in, row * shape.in, shape.in);
          // As of any product: in + 4 units of the sum of |terms|, at most the product of the norms.
          const auto at = [&](int64_t j) { return static_cast<size_t>(row * shape.out + j); };
          expect_within([&](int64_t j) { return got[at(j)]; }, [&](int64_t j) { return want[at(j)]; }, shape.out,
                        [&](int64_t j) {
                          return 1.01 * static_cast<double>(shape.in + 4) * kF32Unit * in_norm *
                                 norm(weight, j * shape.in, shape.in);
                        });
        }
      }
    }
  }
}

TEST_P(MoeKernelConformance, GroupedLinearDoesNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  const Experts experts = draw_experts(device_, rng_, {.in = 96, .out = 300}, 7);
  const auto ids = draw_pairs(rng_, 90, 7, 0.4);
  const Sorted many = run_sort(device_, ids, 7), one = run_sort(alone, ids, 7);
  const Stored in(DType::kF32, draw(rng_, many.capacity * 96));
  EXPECT_EQ(run_grouped(device_, experts, many, in), run_grouped(alone, experts, one, in));
}

INSTANTIATE_TEST_SUITE_P(Registry, MoeKernelConformance, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace sluice::kernels
