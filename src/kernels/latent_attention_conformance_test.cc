// The kernels of latent attention, as in kernel_conformance_test.cc.
#include <numeric>
#include <tuple>

#include "base/check.h"
#include "kernels/cpu/plain_products.h"
#include "kernels/kernel_fixture.h"
#include "kernels/ref/ref.h"

namespace sluice::kernels {
namespace {

class LatentKernelConformance : public KernelConformance {};

TEST_P(LatentKernelConformance, HeadLinearStaysWithinItsRoundingBound) {
  for (int i = 0; i < 40; ++i) {
    const DType dtype = kDtypes[rng_.below(2)], out_dtype = kDtypes[rng_.below(2)];
    if (!device_->multiplies(dtype)) continue;
    LinearShape shape{.in = between(1, 150), .out = between(1, 150), .dtype = dtype, .whole = true};
    if (i % 10 == 0) shape = {.in = 128, .out = 512, .dtype = dtype, .whole = true};  // a real one
    const int64_t n = i % 10 == 1 ? between(257, 300) : between(0, 40), heads = between(1, 5);
    const int64_t in_head_stride = shape.in + between(0, 9), in_stride = heads * in_head_stride + between(0, 9);
    const Stored weights(dtype, draw(rng_, heads * shape.out * shape.in, 0.1));
    const size_t plain_bytes = weights.bytes.size() / static_cast<size_t>(heads);
    const size_t stride = (device_->packed_bytes(shape) + 63) / 64 * 64;
    std::vector<char> packed(stride * static_cast<size_t>(heads));
    for (int64_t h = 0; h < heads; ++h) {
      device_->pack(
          shape,
          [&](int64_t first, int64_t count, void* to) {
            for (int64_t at = 0; at < count * shape.in; ++at) {
              static_cast<float*>(to)[at] = static_cast<float>(weights[(h * shape.out + first) * shape.in + at]);
            }
          },
          packed.data() + static_cast<size_t>(h) * stride);
    }
    const auto in = draw(rng_, n * in_stride, 3);
    Stored want(out_dtype, std::vector<float>(static_cast<size_t>(n * heads * shape.out)));
    Stored got = want;
    HeadLinearArgs args{.shape = &shape,
                        .weights = weights.bytes.data(),
                        .weight_stride = plain_bytes,
                        .in = in.data(),
                        .in_stride = in_stride,
                        .in_head_stride = in_head_stride,
                        .out = want.bytes.data(),
                        .out_dtype = out_dtype,
                        .n = n,
                        .n_heads = heads};
    ref::head_linear(args);
    char* out = device_.put(got.bytes);
    args.weights = device_.put(packed);
    args.weight_stride = stride;
    args.in = device_.put(in);
    args.out = out;
    device_->head_linear(device_.context(), args);
    got.bytes = device_.get(out, got.bytes.size());

    // The input is rounded to the type of the product, which moves each product by a unit of itself; then the sum as in
    // linear(), and both sides round what is stored.
    const auto bound = [&](int64_t at) {
      const int64_t row = at / (heads * shape.out), h = at / shape.out % heads, j = at % shape.out;
      double squares = 0;
      for (int64_t k = 0; k < shape.in; ++k) {
        squares += std::pow(in[static_cast<size_t>(row * in_stride + h * in_head_stride + k)], 2);
      }
      const double terms = std::sqrt(squares) * norm(weights, (h * shape.out + j) * shape.in, shape.in);
      const double rounded = dtype == DType::kBf16 ? kBf16Unit : 0;
      return 1.01 * (rounded + static_cast<double>(shape.in + 1) * kF32Unit) * terms +
             2.01 * unit_of(out_dtype) * std::abs(want[at]);
    };
    SCOPED_TRACE(fmt::format("n {} heads {} in {} out {} {}", n, heads, shape.in, shape.out, tensor::to_string(dtype)));
    expect_within([&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; },
                  static_cast<int64_t>(want.size()), bound);
  }
}

// A few sequences of mixed lengths: decodes, chunks in the middle, whole prompts. In scattered slots, in slots that
// follow each other up or down.
struct LatentCase {
  LatentAttentionArgs args;
  std::vector<int32_t> table, rows, starts{0}, lens;
  std::vector<float> q_latent, q_rotary;
  Stored cache;
};

constexpr int64_t kSlots = 4096, kWidth = 3000, kRows = 4;

KvRow latent_row(DType dtype, int64_t latent, int64_t rotary) {
  return {.dtype = dtype, .width = latent + rotary, .group = std::gcd(latent, rotary)};
}

LatentCase draw_latent(Rng& rng, DType dtype, int64_t heads, int64_t latent, int64_t rotary,
                       std::initializer_list<std::pair<int32_t, int32_t>> queries_and_lengths) {
  LatentCase c{.args = {.q_rotary_stride = heads * (rotary + 3) + 5,
                        .q_rotary_head_stride = rotary + 3,
                        .row = latent_row(dtype, latent, rotary),
                        .dtype = dtype,
                        .n_seqs = static_cast<int64_t>(queries_and_lengths.size()),
                        .n_heads = heads,
                        .latent = latent,
                        .rotary = rotary,
                        .table_width = kWidth,
                        .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(latent + rotary)))},
               .cache = Stored(dtype, draw(rng, kSlots * (latent + rotary), 2))};
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const int64_t random = static_cast<int64_t>(rng.below(kSlots));
      c.table.push_back(static_cast<int32_t>(row == 1 ? 7 + i : row == 2 ? kSlots - 1 - i : random));
    }
  }
  for (const auto& [queries, length] : queries_and_lengths) {
    c.rows.push_back(static_cast<int32_t>((c.lens.size() * 3 + 1) % kRows));
    c.starts.push_back(c.starts.back() + queries);
    c.lens.push_back(length);
  }
  c.q_latent = draw(rng, c.starts.back() * heads * latent, 3);
  c.q_rotary = draw(rng, c.starts.back() * c.args.q_rotary_stride, 3);
  return c;
}

std::vector<float> run_latent(Device& device, const LatentCase& c) {
  LatentAttentionArgs args = c.args;
  const auto count = static_cast<size_t>(c.starts.back() * args.n_heads * args.latent);
  float* out = device.put(std::vector<float>(count, kNan));
  args.q_latent = device.put(c.q_latent);
  args.q_rotary = device.put(c.q_rotary);
  args.cache = device.put(c.cache.bytes);
  args.slot_table = device.put(c.table);
  args.table_rows = device.put(c.rows);
  args.query_start = device.put(c.starts);
  args.seq_lens = device.put(c.lens);
  args.out = out;
  device->latent_attention(device.context(), args);
  return device.get(out, count);
}

std::vector<float> run_ref(const LatentCase& c) {
  LatentAttentionArgs args = c.args;
  std::vector<float> out(static_cast<size_t>(c.starts.back() * args.n_heads * args.latent));
  args.q_latent = c.q_latent.data();
  args.q_rotary = c.q_rotary.data();
  args.cache = c.cache.bytes.data();
  args.slot_table = c.table.data();
  args.table_rows = c.rows.data();
  args.query_start = c.starts.data();
  args.seq_lens = c.lens.data();
  args.out = out.data();
  ref::latent_attention(args);
  return out;
}

void expect_within_bound(const LatentCase& c, const std::vector<float>& got) {
  const auto want = run_ref(c);
  const LatentAttentionArgs& args = c.args;
  const int64_t width = args.latent + args.rotary;
  // As for attention() (kernel_conformance_test.cc), with L visible positions and scores s = scale q.k: a score is off
  // by width + 2 units of scale |q||k|, and by one of the stored type where queries are rounded to it; the weight
  // e^(s - max) by as much, by 4 units for exp and 2 max|s| for its argument, and by an exp more for every block of
  // positions and for each cut of a long sequence. That of numerator and denominator, L units for their sums, and one
  // rounding of each weight to the stored type in the numerator.
  double largest_q = 0, largest_k = 0, largest_v = 0;
  for (int64_t row = 0; row < c.starts.back(); ++row) {
    for (int64_t h = 0; h < args.n_heads; ++h) {
      double squares = 0;
      for (int64_t d = 0; d < args.latent; ++d) {
        squares += std::pow(c.q_latent[static_cast<size_t>((row * args.n_heads + h) * args.latent + d)], 2);
      }
      for (int64_t d = 0; d < args.rotary; ++d) {
        squares += std::pow(
            c.q_rotary[static_cast<size_t>(row * args.q_rotary_stride + h * args.q_rotary_head_stride + d)], 2);
      }
      largest_q = std::max(largest_q, std::sqrt(squares));
    }
  }
  for (int64_t at = 0; at < static_cast<int64_t>(c.cache.size()); at += width) {
    largest_k = std::max(largest_k, norm(c.cache, at, width));
    for (int64_t d = 0; d < args.latent; ++d) largest_v = std::max(largest_v, std::abs(c.cache[at + d]));
  }
  const double longest = c.lens.empty() ? 0 : *std::max_element(c.lens.begin(), c.lens.end());
  const double score = largest_q * largest_k * args.scale;
  const double stored_unit = args.dtype == DType::kBf16 ? kBf16Unit : 0;
  const double weight = score * stored_unit + kF32Unit * ((static_cast<double>(width) + 2) * score +
                                                          (longest / 256 + 4) * (4 + 2 * score) + longest);
  SCOPED_TRACE(fmt::format("heads {} latent {} rotary {} {}", args.n_heads, args.latent, args.rotary,
                           tensor::to_string(args.dtype)));
  expect_within([&](int64_t at) { return got[static_cast<size_t>(at)]; },
                [&](int64_t at) { return want[static_cast<size_t>(at)]; }, static_cast<int64_t>(want.size()),
                [&](int64_t) { return (2.05 * weight + 1.01 * stored_unit) * largest_v; });
}

TEST_P(LatentKernelConformance, LatentAttentionStaysWithinItsRoundingBound) {
  for (int i = 0; i < 24; ++i) {
    const DType dtype = kDtypes[i % 2];
    if (!device_->multiplies(dtype)) continue;
    const int64_t heads[] = {1, 3, 16}, latents[] = {1, 16, 33, 112}, rotaries[] = {2, 8, 16};
    const auto some = [&](int64_t longest) {
      const auto length = static_cast<int32_t>(between(1, longest));
      const auto queries = static_cast<int32_t>(rng_.below(2) == 0 ? 1 : between(1, length));
      return std::pair(queries, length);
    };
    const int64_t longest = i % 4 == 0 ? 600 : 40;
    const auto [h, l, r] = std::tuple(heads[rng_.below(3)], latents[rng_.below(4)], rotaries[rng_.below(3)]);
    const LatentCase c = i < 2 ? draw_latent(rng_, dtype, h, l, r, {})
                               : draw_latent(rng_, dtype, h, l, r, {some(longest), some(40), some(7)});
    expect_within_bound(c, run_latent(device_, c));
  }
}

TEST_P(LatentKernelConformance, LatentAttentionOfDeepSeeksSizes) {
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    const LatentCase c = draw_latent(rng_, dtype, 16, 512, 64, {{1, 300}, {20, 60}});
    expect_within_bound(c, run_latent(device_, c));
  }
}

// Long enough to be cut, and the step too small not to be.
TEST_P(LatentKernelConformance, LongSequencesAreCutAndMerged) {
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    const LatentCase c = draw_latent(rng_, dtype, 4, 48, 16, {{1, 2900}, {3, 2500}, {1, 10}});
    expect_within_bound(c, run_latent(device_, c));
  }
}

TEST_P(LatentKernelConformance, LatentAttentionDoesNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    SCOPED_TRACE(tensor::to_string(dtype));
    for (const auto& [latent, rotary] : {std::pair<int64_t, int64_t>{40, 8}, {112, 16}}) {
      const LatentCase c = draw_latent(rng_, dtype, 3, latent, rotary, {{1, 2900}, {70, 300}, {1, 10}});
      EXPECT_EQ(run_latent(device_, c), run_latent(alone, c)) << latent;
    }
  }
}

TEST_P(LatentKernelConformance, LatentAttentionSurvivesScoresOfAnySize) {
  // Scores of +-40000: all weight on one position, the others underflow; nothing overflows.
  LatentCase c = draw_latent(rng_, DType::kF32, 2, 16, 4, {{1, 2900}, {5, 200}});
  c.args.scale = 3000;
  for (const float value : run_latent(device_, c)) {
    ASSERT_TRUE(std::isfinite(value) && std::abs(value) <= 3.001f) << value;
  }
}

// The cases of latent_attention() with weights of heads in place of absorbed queries.
struct ExpandedCase {
  LatentCase latent;
  LinearShape key_shape, value_shape;
  std::vector<float> q;
  Stored keys, values;  // [heads, nope, latent] and [heads, value, latent]
  ExpandedAttentionArgs args;
  bool exact = false;  // queries and what is expanded are numbers of bf16 without being rounded
};

ExpandedCase draw_expanded(Rng& rng, DType dtype, int64_t heads, int64_t latent, int64_t rotary, int64_t nope,
                           int64_t value, std::initializer_list<std::pair<int32_t, int32_t>> queries_and_lengths) {
  LatentCase c = draw_latent(rng, dtype, heads, latent, rotary, queries_and_lengths);
  const int64_t stride = heads * (nope + rotary) + 3;
  const double size = 2 / std::sqrt(static_cast<double>(latent));
  const ExpandedAttentionArgs args{.q_stride = stride,
                                   .row = latent_row(dtype, latent, rotary),
                                   .dtype = dtype,
                                   .n_seqs = c.args.n_seqs,
                                   .n_heads = heads,
                                   .rotary = rotary,
                                   .table_width = kWidth,
                                   .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(nope + rotary)))};
  auto q = draw(rng, c.starts.back() * stride, 2);
  return {.latent = std::move(c),
          .key_shape = {.in = latent, .out = nope, .dtype = dtype, .whole = true},
          .value_shape = {.in = latent, .out = value, .dtype = dtype, .whole = true},
          .q = std::move(q),
          .keys = Stored(dtype, draw(rng, heads * nope * latent, size)),
          .values = Stored(dtype, draw(rng, heads * value * latent, size)),
          .args = args};
}

// The same with numbers of so few digits that no key, value or query is rounded, which leaves a bound that is a small
// part of what is expected: sums of up to 64 products of whole quarters, each at most a half.
ExpandedCase draw_exact_expanded(Rng& rng, int64_t heads, int64_t latent, int64_t rotary, int64_t nope, int64_t value,
                                 std::initializer_list<std::pair<int32_t, int32_t>> queries_and_lengths) {
  SLUICE_CHECK(latent <= 64, "sums of {} products", latent);
  ExpandedCase c = draw_expanded(rng, DType::kBf16, heads, latent, rotary, nope, value, queries_and_lengths);
  const auto whole = [&](size_t count, int64_t largest, float unit) {
    std::vector<float> values(count);
    for (float& v : values) {
      v = unit * static_cast<float>(static_cast<int64_t>(rng.below(static_cast<uint64_t>(2 * largest + 1))) - largest);
    }
    return values;
  };
  c.latent.cache = Stored(DType::kBf16, whole(c.latent.cache.size(), 2, 1));
  c.keys = Stored(DType::kBf16, whole(c.keys.size(), 1, 0.25f));
  c.values = Stored(DType::kBf16, whole(c.values.size(), 1, 0.25f));
  c.q = whole(c.q.size(), 100, 0x1p-6f);
  c.exact = true;
  return c;
}

std::vector<char> pack_heads(Device& device, const LinearShape& shape, const Stored& weights, int64_t heads) {
  const size_t stride = (device->packed_bytes(shape) + 63) / 64 * 64;
  std::vector<char> packed(stride * static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h) {
    device->pack(
        shape,
        [&](int64_t first, int64_t count, void* to) {
          for (int64_t at = 0; at < count * shape.in; ++at) {
            static_cast<float*>(to)[at] = static_cast<float>(weights[(h * shape.out + first) * shape.in + at]);
          }
        },
        packed.data() + static_cast<size_t>(h) * stride);
  }
  return packed;
}

std::vector<char> run_expanded(Device& device, const ExpandedCase& c) {
  ExpandedAttentionArgs args = c.args;
  const auto bytes =
      static_cast<size_t>(c.latent.starts.back() * args.n_heads * c.value_shape.out) * tensor::block_bytes(args.dtype);
  const auto keys = pack_heads(device, c.key_shape, c.keys, args.n_heads);
  const auto values = pack_heads(device, c.value_shape, c.values, args.n_heads);
  char* out = device.put(std::vector<char>(bytes));
  args.q = device.put(c.q);
  args.cache = device.put(c.latent.cache.bytes);
  args.key_shape = &c.key_shape;
  args.keys = device.put(keys);
  args.key_stride = keys.size() / static_cast<size_t>(args.n_heads);
  args.value_shape = &c.value_shape;
  args.values = device.put(values);
  args.value_stride = values.size() / static_cast<size_t>(args.n_heads);
  args.slot_table = device.put(c.latent.table);
  args.table_rows = device.put(c.latent.rows);
  args.query_start = device.put(c.latent.starts);
  args.seq_lens = device.put(c.latent.lens);
  args.out = out;
  device->expanded_attention(device.context(), args);
  return device.get(out, bytes);
}

void expect_expanded_within_bound(const ExpandedCase& c, const std::vector<char>& bytes) {
  const int64_t heads = c.args.n_heads, latent = c.key_shape.in, nope = c.key_shape.out, value = c.value_shape.out;
  const int64_t dim = nope + c.args.rotary, width = latent + c.args.rotary;
  Stored want(c.args.dtype, std::vector<float>(static_cast<size_t>(c.latent.starts.back() * heads * value)));
  Stored got = want;
  got.bytes = bytes;
  ExpandedAttentionArgs args = c.args;
  args.q = c.q.data();
  args.cache = c.latent.cache.bytes.data();
  args.key_shape = &c.key_shape;
  args.keys = c.keys.bytes.data();
  args.key_stride = c.keys.bytes.size() / static_cast<size_t>(heads);
  args.value_shape = &c.value_shape;
  args.values = c.values.bytes.data();
  args.value_stride = c.values.bytes.size() / static_cast<size_t>(heads);
  args.slot_table = c.latent.table.data();
  args.table_rows = c.latent.rows.data();
  args.query_start = c.latent.starts.data();
  args.seq_lens = c.latent.lens.data();
  args.out = want.bytes.data();
  ref::expanded_attention(args);

  // As for latent_attention(). Keys and values are products of `latent` terms, off by as many units of the product of
  // the norms; in bf16 they are rounded, as queries and weights are, and so is what is stored. Where nothing is lost in
  // keys, values and queries, weights and what is stored are left.
  double largest_q = 0, largest_latent = 0, largest_rotary = 0, largest_key_up = 0, largest_value_up = 0;
  for (int64_t row = 0; row < c.latent.starts.back(); ++row) {
    for (int64_t h = 0; h < heads; ++h) {
      double squares = 0;
      for (int64_t d = 0; d < dim; ++d) {
        squares += std::pow(c.q[static_cast<size_t>(row * c.args.q_stride + h * dim + d)], 2);
      }
      largest_q = std::max(largest_q, std::sqrt(squares));
    }
  }
  for (int64_t at = 0; at < static_cast<int64_t>(c.latent.cache.size()); at += width) {
    largest_latent = std::max(largest_latent, norm(c.latent.cache, at, latent));
    largest_rotary = std::max(largest_rotary, norm(c.latent.cache, at + latent, c.args.rotary));
  }
  for (int64_t h = 0; h < heads; ++h) {
    largest_key_up =
        std::max(largest_key_up, norm(c.keys, h * nope * latent, nope * latent));  // at least the operator's
    for (int64_t d = 0; d < value; ++d) {
      largest_value_up = std::max(largest_value_up, norm(c.values, (h * value + d) * latent, latent));
    }
  }
  const double largest_k = std::hypot(largest_key_up * largest_latent, largest_rotary);
  const double largest_v = largest_value_up * largest_latent;
  const double longest = c.latent.lens.empty() ? 0 : *std::max_element(c.latent.lens.begin(), c.latent.lens.end());
  const double score = largest_q * largest_k * c.args.scale;
  const double stored_unit = c.args.dtype == DType::kBf16 ? kBf16Unit : 0;
  const double input_unit = c.exact ? 0 : stored_unit;
  const double products = static_cast<double>(latent + 1) * kF32Unit;
  const double weight = score * (2 * input_unit + products + static_cast<double>(dim + 2) * kF32Unit) +
                        kF32Unit * ((longest / 256 + 3) * (4 + 2 * score) + longest);
  SCOPED_TRACE(fmt::format("heads {} latent {} rotary {} nope {} value {} {}", heads, latent, c.args.rotary, nope,
                           value, tensor::to_string(c.args.dtype)));
  expect_within([&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; },
                static_cast<int64_t>(want.size()),
                [&](int64_t at) {
                  return (2.05 * weight + 1.01 * (stored_unit + input_unit) + 1.01 * products) * largest_v +
                         2.01 * unit_of(c.args.dtype) * std::abs(want[at]);
                });
}

TEST_P(LatentKernelConformance, ExpandedAttentionStaysWithinItsRoundingBound) {
  for (int i = 0; i < 24; ++i) {
    const DType dtype = kDtypes[i % 2];
    if (!device_->multiplies(dtype)) continue;
    const int64_t heads[] = {1, 3, 4}, latents[] = {1, 16, 33}, rotaries[] = {2, 8, 16};
    const auto some = [&](int64_t longest) {
      const auto length = static_cast<int32_t>(between(1, longest));
      const auto queries = static_cast<int32_t>(rng_.below(2) == 0 ? length : between(1, length));
      return std::pair(queries, length);
    };
    const int64_t longest = i % 8 == 0 ? 700 : 60;
    const int64_t h = heads[rng_.below(3)], l = latents[rng_.below(3)], r = rotaries[rng_.below(3)];
    const int64_t nope = between(1, 24), value = between(1, 24);
    const ExpandedCase c = i < 2 ? draw_expanded(rng_, dtype, h, l, r, nope, value, {})
                                 : draw_expanded(rng_, dtype, h, l, r, nope, value, {some(longest), some(40), some(7)});
    expect_expanded_within_bound(c, run_expanded(device_, c));
  }
}

// More query rows than share an expansion, after a prefix that is longer than a block of positions.
TEST_P(LatentKernelConformance, ExpandedAttentionOfLongChunks) {
  const ExpandedCase c = draw_expanded(rng_, DType::kF32, 3, 24, 4, 12, 10, {{600, 900}, {1, 300}});
  expect_expanded_within_bound(c, run_expanded(device_, c));
}

// Heads of DeepSeek's form, which are packed for products in bf16.
TEST_P(LatentKernelConformance, ExpandedAttentionOfHeadsThatArePacked) {
  if (!device_->multiplies(DType::kBf16)) GTEST_SKIP() << "no products in bf16";
  const auto expect_bound = [&](const ExpandedCase& c) { expect_expanded_within_bound(c, run_expanded(device_, c)); };
  const auto narrow = {std::pair{300, 300}, {70, 600}, {1, 290}};
  expect_bound(draw_exact_expanded(rng_, 3, 48, 16, 48, 64, narrow));
  expect_bound(draw_expanded(rng_, DType::kBf16, 3, 48, 16, 48, 64, narrow));
  const auto wide = {std::pair{530, 700}, {33, 330}};
  expect_bound(draw_exact_expanded(rng_, 2, 64, 64, 128, 128, wide));
  expect_bound(draw_expanded(rng_, DType::kBf16, 2, 64, 64, 128, 128, wide));
}

TEST_P(LatentKernelConformance, ExpandedAttentionDoesNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    SCOPED_TRACE(tensor::to_string(dtype));
    const ExpandedCase odd = draw_expanded(rng_, dtype, 5, 24, 4, 12, 10, {{70, 300}, {40, 40}});
    EXPECT_EQ(run_expanded(device_, odd), run_expanded(alone, odd));
    const ExpandedCase packed = draw_expanded(rng_, dtype, 5, 24, 16, 48, 64, {{70, 300}, {40, 40}, {300, 600}});
    EXPECT_EQ(run_expanded(device_, packed), run_expanded(alone, packed));
  }
}

TEST_P(LatentKernelConformance, AttentionOverAnyTypeOfCacheIsThatOverItsValues) {
  for (const DType cached : kCacheTypes) {
    for (const DType dtype : kDtypes) {
      if (!device_->multiplies(dtype)) continue;
      SCOPED_TRACE(fmt::format("{} {}", tensor::to_string(cached), tensor::to_string(dtype)));
      ExpandedCase c = draw_expanded(rng_, dtype, 3, 64, 16, 12, 10, {{1, 300}, {20, 40}});
      const auto count = static_cast<int64_t>(c.latent.cache.size());
      const CachedRows cache = cache_of(latent_row(cached, 64, 16), draw(rng_, count, 2));
      c.args.row = c.latent.args.row = latent_row(DType::kF32, 64, 16);
      c.latent.cache = Stored(DType::kF32, cache.values);
      const auto absorbed = run_latent(device_, c.latent);
      const auto expanded = run_expanded(device_, c);
      c.args.row = c.latent.args.row = cache.row;
      c.latent.cache.bytes = cache.bytes;
      EXPECT_EQ(run_latent(device_, c.latent), absorbed);
      EXPECT_EQ(run_expanded(device_, c), expanded);
    }
  }
}

TEST_P(LatentKernelConformance, ACacheOfOnePlaneIsStored) {
  for (const DType dtype : kCacheTypes) {
    StoreKvArgs args{.row = latent_row(dtype, 32, 16), .n = 3, .stride = 50};
    const std::vector<int32_t> slots{5, 0, 7};
    const auto rows = draw(rng_, args.n * args.stride);
    CachedRows cache = cache_of(args.row, draw(rng_, 8 * args.row.width));
    StoreKvArgs own = args;
    char* own_cache = device_.put(cache.bytes);
    own.k = device_.put(rows);
    own.slots = device_.put(slots);
    own.k_cache = own_cache;
    args.k = rows.data();
    args.slots = slots.data();
    args.k_cache = cache.bytes.data();
    ref::store_kv(args);
    device_->store_kv(device_.context(), own);
    EXPECT_EQ(device_.get(own_cache, cache.bytes.size()), cache.bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, LatentKernelConformance, ::testing::ValuesIn(cases()), case_name);

TEST(PlainProductsTest, NoneIsLeftToTheReferenceLoopsOfOneDnn) {
  const cpu::PlainProducts products(1);
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    if (!make_backend("cpu", 1).value()->multiplies(dtype)) continue;
    for (const int64_t rows : {1, 4, 16, 128, 256}) {
      for (const int64_t positions : {32, 96, 256}) {
        const cpu::PlainShape scores{.m = rows, .k = 576, .n = positions, .dtype = dtype, .b_transposed = true};
        EXPECT_FALSE(products.implementation(scores).starts_with("ref")) << rows << " " << positions;
        const cpu::PlainShape expanded{.m = rows, .k = 192, .n = positions, .dtype = dtype, .b_transposed = true};
        EXPECT_FALSE(products.implementation(expanded).starts_with("ref")) << rows << " " << positions;
        for (const bool accumulate : {false, true}) {
          const cpu::PlainShape sums{.m = rows, .k = positions, .n = 576, .dtype = dtype, .accumulate = accumulate};
          EXPECT_FALSE(products.implementation(sums).starts_with("ref")) << rows << " " << positions;
          const cpu::PlainShape values{.m = rows, .k = positions, .n = 128, .dtype = dtype, .accumulate = accumulate};
          EXPECT_FALSE(products.implementation(values).starts_with("ref")) << rows << " " << positions;
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice::kernels
