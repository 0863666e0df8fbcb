// What every backend must do: each kernel against its twin in ref/, within a bound derived from the roundings of its
// operation, on each instruction set that this machine runs. SLUICE_TEST_SEED draws other cases.
#include "kernels/kernel_fixture.h"

#include <numeric>

#include "kernels/ref/ref.h"

namespace sluice::kernels {
namespace {

struct LinearCase {
  LinearShape shape;
  int64_t n;
  bool bias, accumulate;
};

// One product on the device; what lies beyond the padded rows must stay as it is.
std::vector<float> run_linear(Device& device, const LinearCase& c, const Stored& weight, const Stored& in,
                              const std::vector<float>& bias, const std::vector<float>& out) {
  std::vector<char> packed(device->packed_bytes(c.shape));
  device->pack(
      c.shape,
      [&](int64_t first, int64_t count, void* to) {
        auto* rows = static_cast<float*>(to);
        for (int64_t i = 0; i < count * c.shape.in; ++i) rows[i] = static_cast<float>(weight[first * c.shape.in + i]);
      },
      packed.data());
  float* result = device.put(out);
  device->linear(device.context(), {.shape = &c.shape,
                                    .weight = device.put(packed),
                                    .in = device.put(in.bytes),
                                    .out = result,
                                    .n = c.n,
                                    .bias = c.bias ? device.put(bias) : nullptr,
                                    .accumulate = c.accumulate});
  return device.get(result, out.size());
}

TEST_P(KernelConformance, LinearStaysWithinItsRoundingBound) {
  for (int i = 0; i < 60; ++i) {
    LinearCase c{.shape = {between(1, 200), between(1, 400), kDtypes[rng_.below(2)]},
                 .n = i < 40 ? between(0, 40) : between(250, 300),
                 .bias = rng_.below(2) == 0,
                 .accumulate = rng_.below(2) == 0};
    if (i % 10 == 0) c.shape = {.in = 576, .out = 1536, .dtype = c.shape.dtype};  // a real one
    if (i % 10 == 5) c.shape = {.in = 1700, .out = 128, .dtype = DType::kBf16};   // summed in parts, the last one short
    if (!device_->multiplies(c.shape.dtype)) continue;
    const int64_t in = c.shape.in, out = c.shape.out;
    const DType dtype = c.shape.dtype;
    const int64_t padded = device_->padded_rows(c.n);
    const Stored weight(dtype, draw(rng_, out * in, 0.1));
    auto values = draw(rng_, padded * in, 3);
    if (c.n > 1) std::fill_n(values.begin(), in, 0.0f);        // a row of zeros
    std::fill(values.begin() + c.n * in, values.end(), kNan);  // padding reaches no real row
    const Stored x(dtype, values);
    const auto bias = draw(rng_, out);
    auto before = draw(rng_, padded * out + 64);

    const auto got = run_linear(device_, c, weight, x, bias, before);
    auto want = before;
    ref::linear({.shape = &c.shape,
                 .weight = weight.bytes.data(),
                 .in = x.bytes.data(),
                 .out = want.data(),
                 .n = c.n,
                 .bias = c.bias ? bias.data() : nullptr,
                 .accumulate = c.accumulate});

    // Products of bf16 are exact in float32. A sum of k terms in float32 is off by at most k units of the sum of
    // |terms|, whatever the order; by Cauchy-Schwarz that sum is at most the product of the norms. Bias and the old
    // value are two terms more.
    std::vector<double> row_norms, column_norms;
    for (int64_t r = 0; r < c.n; ++r) row_norms.push_back(norm(x, r * in, in));
    for (int64_t j = 0; j < out; ++j) column_norms.push_back(norm(weight, j * in, in));
    const auto bound = [&](int64_t at) {
      const auto r = static_cast<size_t>(at / out), j = static_cast<size_t>(at % out);
      double terms = row_norms[r] * column_norms[j];
      if (c.bias) terms += std::abs(bias[j]);
      if (c.accumulate) terms += std::abs(before[static_cast<size_t>(at)]);
      return 1.01 * static_cast<double>(in + 3) * kF32Unit * terms;
    };
    const auto of = [](const std::vector<float>& v) {
      return [&v](int64_t at) -> double { return v[static_cast<size_t>(at)]; };
    };
    SCOPED_TRACE(fmt::format("n {} in {} out {} {} bias {} accumulate {}", c.n, in, out, tensor::to_string(dtype),
                             c.bias, c.accumulate));
    expect_within(of(got), of(want), c.n * out, bound);
    EXPECT_TRUE(std::equal(got.end() - 64, got.end(), before.end() - 64)) << "wrote beyond the padded rows";
  }
}

// By how much rounding the inputs of a row to eight bits may change a product: a 254th of each block's largest, by the
// sum of the block's weights.
double input_rounding(const Stored& x, int64_t row, const Stored& weight, int64_t column, int64_t in) {
  double bound = 0;
  for (int64_t block = 0; block < in; block += 32) {
    double top = 0, weights = 0;
    for (int64_t k = block; k < block + 32; ++k) {
      top = std::max(top, std::abs(x[row * in + k]));
      weights += std::abs(weight[column * in + k]);
    }
    bound += top / 254 * weights;
  }
  return bound;
}

std::vector<char> pack_blocks(const Device& device, const LinearShape& shape, const std::vector<uint8_t>& blocks) {
  const size_t row = tensor::bytes_of(shape.stored, static_cast<size_t>(shape.in));
  std::vector<char> packed(device->packed_bytes(shape));
  device->pack(
      shape,
      [&](int64_t first, int64_t count, void* to) {
        std::copy_n(blocks.data() + static_cast<size_t>(first) * row, static_cast<size_t>(count) * row,
                    static_cast<uint8_t*>(to));
      },
      packed.data());
  return packed;
}

class KeptBlocks : public KernelConformance {
 protected:
  void expect_product(DType stored, DType dtype, bool rounded, int64_t n) {
    const auto values_per_block = static_cast<int64_t>(tensor::block_elements(stored));
    LinearCase c{.shape = {.in = values_per_block * between(1, 256 / values_per_block),
                           .out = between(1, 200),
                           .dtype = dtype,
                           .stored = stored,
                           .rounded = rounded},
                 .n = n,
                 .bias = rng_.below(2) == 0,
                 .accumulate = rng_.below(2) == 0};
    if (!device_->keeps(c.shape)) return;
    ++products_;
    const int64_t in = c.shape.in, out = c.shape.out;
    const size_t row = tensor::bytes_of(stored, static_cast<size_t>(in));
    const auto blocks = draw_blocks(rng_, stored, row * static_cast<size_t>(out));
    std::vector<float> values(static_cast<size_t>(in * out));
    tensor::to_float(stored, blocks.data(), values.size(), values.data());
    const Stored weight(DType::kF32, values);
    const Stored x(dtype, draw(rng_, device_->padded_rows(n) * in, 3));
    const auto bias = draw(rng_, out);
    const auto before = draw(rng_, device_->padded_rows(n) * out);

    const auto packed = pack_blocks(device_, c.shape, blocks);
    float* result = device_.put(before);
    device_->linear(device_.context(), {.shape = &c.shape,
                                        .weight = device_.put(packed),
                                        .in = device_.put(x.bytes),
                                        .out = result,
                                        .n = n,
                                        .bias = c.bias ? device_.put(bias) : nullptr,
                                        .accumulate = c.accumulate});
    const auto got = device_.get(result, before.size());
    std::vector<float> wide(static_cast<size_t>(device_->padded_rows(n) * in));
    for (size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<float>(x[static_cast<int64_t>(i)]);
    auto want = before;
    const LinearShape plain{.in = in, .out = out};
    ref::linear({.shape = &plain,
                 .weight = weight.bytes.data(),
                 .in = wide.data(),
                 .out = want.data(),
                 .n = n,
                 .bias = c.bias ? bias.data() : nullptr,
                 .accumulate = c.accumulate});
    SCOPED_TRACE(fmt::format("{} {}{} n {} in {} out {}", tensor::to_string(stored), tensor::to_string(dtype),
                             rounded ? " rounded" : "", n, in, out));
    std::vector<double> row_norms, column_norms;
    for (int64_t r = 0; r < n; ++r) row_norms.push_back(norm(x, r * in, in));
    for (int64_t j = 0; j < out; ++j) column_norms.push_back(norm(weight, j * in, in));
    // The values are those of the blocks to the bit, so the bound is that of any product; one unit more for a machine
    // without fused multiply-add, where scale times quant is exact and the offset's sum rounds. Rounded, either the
    // inputs are in eight bits or the weights in bf16.
    expect_within([&](int64_t at) { return got[static_cast<size_t>(at)]; },
                  [&](int64_t at) { return want[static_cast<size_t>(at)]; }, n * out,
                  [&](int64_t at) {
                    const int64_t r = at / out, j = at % out;
                    const double products = row_norms[static_cast<size_t>(r)] * column_norms[static_cast<size_t>(j)];
                    double terms = products;
                    if (c.bias) terms += std::abs(bias[static_cast<size_t>(j)]);
                    if (c.accumulate) terms += std::abs(before[static_cast<size_t>(at)]);
                    const double rounding =
                        rounded ? std::max(input_rounding(x, r, weight, j, in), kBf16Unit * products) : 0;
                    return 1.01 * (rounding + static_cast<double>(in + 4) * kF32Unit * terms);
                  });
  }

  int products_ = 0;
};

TEST_P(KeptBlocks, AreMultipliedAsTheirValues) {
  for (const DType stored : {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K}) {
    for (const int64_t n : {0, 1, 2, 3, 4, 7, 8, 9, 16, 17, 70, 300}) expect_product(stored, DType::kF32, false, n);
  }
  EXPECT_EQ(products_, 5 * 12);
}

TEST_P(KeptBlocks, WithRoundedInputsStayWithinTheirBound) {
  for (const DType stored : {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K}) {
    for (const DType dtype : kDtypes) {
      for (const int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 70, 300}) expect_product(stored, dtype, true, n);
    }
  }
  EXPECT_GE(products_, 5 * 13);
}

// Not a wrong number: an input that is no number leaves none in its row.
TEST_P(KeptBlocks, WithRoundedInputsThatAreNotFiniteGiveNoNumbers) {
  const LinearShape shape{.in = 64, .out = 40, .stored = DType::kQ4_0, .rounded = true};
  ASSERT_TRUE(device_->keeps(shape));
  const size_t row = tensor::bytes_of(shape.stored, 64);
  const auto blocks = draw_blocks(rng_, shape.stored, row * 40);
  const auto packed = pack_blocks(device_, shape, blocks);
  auto in = draw(rng_, 3 * 64);
  in[10] = kNan;
  in[64 + 40] = std::numeric_limits<float>::infinity();
  float* out = device_.put(std::vector<float>(3 * 40));
  device_->linear(device_.context(),
                  {.shape = &shape, .weight = device_.put(packed), .in = device_.put(in), .out = out, .n = 3});
  const auto got = device_.get(out, 3 * 40);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isfinite(got[i]), i >= 80) << i;
}

// A damaged weight shows, however many rows there are.
TEST_P(KeptBlocks, WhoseScaleIsNoNumberGiveNone) {
  for (const DType dtype : kDtypes) {
    const LinearShape shape{.in = 64, .out = 20, .dtype = dtype, .stored = DType::kQ8_0, .rounded = true};
    if (!device_->keeps(shape)) continue;
    const size_t row = tensor::bytes_of(shape.stored, 64);
    auto blocks = draw_blocks(rng_, shape.stored, row * 20);
    blocks[3 * row] = 0xff;
    blocks[3 * row + 1] = 0x7f;
    const auto packed = pack_blocks(device_, shape, blocks);
    for (const int64_t n : {1, 60}) {
      const Stored in(dtype, draw(rng_, device_->padded_rows(n) * 64));
      float* out = device_.put(std::vector<float>(static_cast<size_t>(device_->padded_rows(n) * 20)));
      device_->linear(
          device_.context(),
          {.shape = &shape, .weight = device_.put(packed), .in = device_.put(in.bytes), .out = out, .n = n});
      const auto got = device_.get(out, static_cast<size_t>(n * 20));
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_EQ(std::isfinite(got[i]), i % 20 != 3) << i << " of " << n << " rows, " << tensor::to_string(dtype);
      }
    }
  }
}

TEST_P(KeptBlocks, WithRoundedInputsDoNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  constexpr int64_t kIn = 256, kOut = 1000;
  int products = 0;
  for (const DType stored : {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K}) {
    for (const DType dtype : kDtypes) {
      const LinearShape shape{.in = kIn, .out = kOut, .dtype = dtype, .stored = stored, .rounded = true};
      if (!device_->keeps(shape)) continue;
      const auto blocks = draw_blocks(rng_, stored, kOut * tensor::bytes_of(stored, static_cast<size_t>(kIn)));
      for (const int64_t n : {1, 33, 300}) {
        const Stored in(dtype, draw(rng_, device_->padded_rows(n) * kIn));
        const auto run = [&](Device& device) {
          float* out = device.put(std::vector<float>(static_cast<size_t>(device->padded_rows(n) * kOut)));
          device->linear(device.context(), {.shape = &shape,
                                            .weight = device.put(pack_blocks(device, shape, blocks)),
                                            .in = device.put(in.bytes),
                                            .out = out,
                                            .n = n});
          return device.get(out, static_cast<size_t>(n * kOut));
        };
        EXPECT_EQ(run(device_), run(alone))
            << tensor::to_string(stored) << " " << tensor::to_string(dtype) << ", n " << n;
        ++products;
      }
    }
  }
  EXPECT_GE(products, 4 * 3);
}

INSTANTIATE_TEST_SUITE_P(Devices, KeptBlocks, ::testing::ValuesIn(cases()), case_name);

TEST_P(KernelConformance, LinearDoesNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    // 1000 outputs end within a block of columns; 576 are whole ones, which pairs of bf16 divide further, and rows too.
    for (const auto& [out_width, n] : std::initializer_list<std::pair<int64_t, int64_t>>{
             {1000, 1}, {1000, 5}, {1000, 33}, {1000, 300}, {576, 1}, {576, 5}, {576, 65}, {576, 300}}) {
      const LinearCase c{.shape = {.in = 96, .out = out_width, .dtype = dtype}, .n = n, .bias = true};
      const Stored weight(dtype, draw(rng_, c.shape.out * c.shape.in));
      const Stored x(dtype, draw(rng_, device_->padded_rows(n) * c.shape.in));
      const auto bias = draw(rng_, c.shape.out);
      const std::vector<float> out(static_cast<size_t>(device_->padded_rows(n) * c.shape.out));
      const auto many = run_linear(device_, c, weight, x, bias, out);
      const auto one = run_linear(alone, c, weight, x, bias, out);
      EXPECT_TRUE(std::equal(many.begin(), many.begin() + n * c.shape.out, one.begin()))
          << tensor::to_string(dtype) << ", out " << out_width << ", n " << n;
    }
  }
}

TEST_P(KernelConformance, EmbedWidensRowsOfBlocks) {
  for (const DType stored : {DType::kQ4_1, DType::kQ8_0, DType::kQ6_K}) {
    const int64_t width = 256, rows = 9;
    const size_t row = tensor::bytes_of(stored, static_cast<size_t>(width));
    const auto table = draw_blocks(rng_, stored, row * static_cast<size_t>(rows));
    const std::vector<int32_t> ids{12, 3, 4, 40};  // the table has 4 to 12
    float* out = device_.put(std::vector<float>(ids.size() * static_cast<size_t>(width), 7));
    device_->embed(device_.context(), {.table = device_.put(table),
                                       .dtype = stored,
                                       .first = 4,
                                       .rows = rows,
                                       .ids = device_.put(ids),
                                       .out = out,
                                       .n = 4,
                                       .width = width});
    std::vector<float> want(ids.size() * static_cast<size_t>(width));
    tensor::to_float(stored, table.data() + 8 * row, static_cast<size_t>(width), want.data());
    tensor::to_float(stored, table.data(), static_cast<size_t>(width), want.data() + 2 * width);
    EXPECT_EQ(device_.get(out, want.size()), want) << tensor::to_string(stored);
  }
}

TEST_P(KernelConformance, EmbedCopiesRowsExactly) {
  for (const DType dtype : kDtypes) {
    for (const int64_t n : {0, 1, 7, 40}) {
      const int64_t vocab = 50, width = between(1, 130), first = between(0, 20), rows = between(1, vocab - first);
      const Stored table(dtype, draw(rng_, rows * width));
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(between(0, vocab - 1)));
      std::vector<float> want(static_cast<size_t>(n * width));
      float* out = device_.put(want);
      EmbedArgs args{.table = table.bytes.data(),
                     .dtype = dtype,
                     .first = first,
                     .rows = rows,
                     .ids = ids.data(),
                     .out = want.data(),
                     .n = n,
                     .width = width};
      ref::embed(args);
      args.table = device_.put(table.bytes);
      args.ids = device_.put(ids);
      args.out = out;
      device_->embed(device_.context(), args);
      EXPECT_EQ(device_.get(out, want.size()), want);
    }
  }
}

TEST_P(KernelConformance, RmsNormStaysWithinItsRoundingBound) {
  for (int i = 0; i < 40; ++i) {
    RmsNormArgs args{.out_dtype = kDtypes[rng_.below(2)],
                     .n = between(0, 40),
                     .groups = between(1, 4),
                     .width = between(1, 200),
                     .epsilon = i % 2 == 0 ? 1e-5f : 1e-6f};
    args.in_stride = args.groups * args.width + between(0, 9);
    args.out_stride = args.groups * args.width + between(0, 9);
    auto in = draw(rng_, args.n * args.in_stride, std::pow(10.0, static_cast<double>(between(-4, 4))));
    if (args.n > 1) std::fill_n(in.begin(), args.in_stride, 0.0f);  // epsilon alone under the root
    const auto weight = draw(rng_, args.width);
    Stored want(args.out_dtype, draw(rng_, args.n * args.out_stride));
    Stored got = want;  // what lies between the rows must stay
    char* out = device_.put(want.bytes);
    RmsNormArgs plain = args;
    plain.in = in.data();
    plain.weight = weight.data();
    plain.out = want.bytes.data();
    ref::rms_norm(plain);
    args.in = device_.put(in);
    args.weight = device_.put(weight);
    args.out = out;
    device_->rms_norm(device_.context(), args);
    got.bytes = device_.get(out, want.bytes.size());
    // A sum of width squares is off by width + 1 units of itself, its root by half of that; the division, the root and
    // the two products add a unit each. Both sides round to the type that is stored.
    const double units = (static_cast<double>(args.width) + 1) / 2 + 6;
    expect_within(
        [&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; }, args.n * args.out_stride,
        [&](int64_t at) { return std::abs(want[at]) * (1.01 * units * kF32Unit + 2.01 * unit_of(args.out_dtype)); });
  }
}

// A row whose parts are normed by the sum of the squares of all of them.
TEST_P(KernelConformance, RmsNormOfPartsIsThatOfTheWhole) {
  const int64_t n = 7, whole = 96, stride = 110;
  const auto in = draw(rng_, n * stride);
  const auto weight = draw(rng_, whole);
  for (const DType dtype : kDtypes) {
    Stored want(dtype, std::vector<float>(static_cast<size_t>(n * stride)));
    RmsNormArgs args{.in = in.data(),
                     .weight = weight.data(),
                     .out = want.bytes.data(),
                     .out_dtype = dtype,
                     .n = n,
                     .width = whole,
                     .in_stride = stride,
                     .out_stride = stride};
    ref::rms_norm(args);

    const float* device_in = device_.put(in);
    std::vector<float> sums(static_cast<size_t>(n));
    for (const auto& [first, width] : {std::pair<int64_t, int64_t>{0, 40}, {40, 56}}) {
      float* part = device_.put(std::vector<float>(static_cast<size_t>(n), kNan));
      device_->square_sum(device_.context(),
                          {.in = device_in + first, .out = part, .n = n, .width = width, .in_stride = stride});
      const auto values = device_.get(part, sums.size());
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += values[i];
    }
    Stored got = want;
    char* out = device_.put(got.bytes);
    const float* device_weight = device_.put(weight);
    args.in = device_in + 40;
    args.weight = device_weight + 40;
    args.out = out + 40 * static_cast<int64_t>(tensor::block_bytes(dtype));
    args.width = 56;
    args.square_sums = device_.put(sums);
    args.whole_width = whole;
    device_->rms_norm(device_.context(), args);
    got.bytes = device_.get(out, got.bytes.size());
    expect_within([&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; }, n * stride,
                  [&](int64_t at) { return std::abs(want[at]) * (8 * kF32Unit + 2.01 * unit_of(dtype)); });
  }
}

TEST_P(KernelConformance, RmsNormWorksInPlace) {
  const int64_t n = 5, groups = 3, width = 33, stride = 120;
  auto values = draw(rng_, n * stride);
  const auto weight = draw(rng_, width);
  float* heads = device_.put(values);
  RmsNormArgs args{.in = values.data(),
                   .weight = weight.data(),
                   .out = values.data(),
                   .n = n,
                   .groups = groups,
                   .width = width,
                   .in_stride = stride,
                   .out_stride = stride};
  const auto device_args = [&] {
    RmsNormArgs own = args;
    own.in = heads;
    own.out = heads;
    own.weight = device_.put(weight);
    return own;
  }();
  ref::rms_norm(args);
  device_->rms_norm(device_.context(), device_args);
  const auto got = device_.get(heads, values.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], values[i], std::abs(values[i]) * 25 * kF32Unit);
}

TEST_P(KernelConformance, RopeAnglesAreRightAtLongPositions) {
  for (const int64_t n : {0, 1, 33}) {
    const int64_t half = between(1, 64);
    const float scale = n == 33 ? 1.27f : 1;
    std::vector<int32_t> positions;
    for (int64_t i = 0; i < n; ++i) positions.push_back(static_cast<int32_t>(i == 0 ? 0 : between(0, 1'000'000)));
    std::vector<float> frequencies;
    for (int64_t j = 0; j < half; ++j) frequencies.push_back(static_cast<float>(std::pow(10000.0, -j / 64.0)));
    std::vector<float> want(static_cast<size_t>(n * 2 * half));
    float* out = device_.put(want);
    ref::rope_angles({.positions = positions.data(),
                      .inverse_frequencies = frequencies.data(),
                      .cos_sin = want.data(),
                      .n = n,
                      .half = half,
                      .scale = scale});
    device_->rope_angles(device_.context(), {.positions = device_.put(positions),
                                             .inverse_frequencies = device_.put(frequencies),
                                             .cos_sin = out,
                                             .n = n,
                                             .half = half,
                                             .scale = scale});
    const auto got = device_.get(out, want.size());
    // An angle of 1e6 in double is off by 1e6 * 2^-53, far below a float's last place; each side rounds once to float.
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], scale * (2 * kF32Unit + 1e6 * 0x1p-53));
  }
}

TEST_P(KernelConformance, RopeStaysWithinItsRoundingBound) {
  for (int i = 0; i < 40; ++i) {
    RopeArgs args{.n = between(0, 40), .n_heads = between(1, 5), .half = between(1, 40), .interleaved = i % 2 == 0};
    args.head_dim = 2 * args.half + between(0, 3);  // the rest of a head stays as it is
    args.stride = args.n_heads * args.head_dim + between(0, 9);
    std::vector<float> angles;
    for (int64_t r = 0; r < args.n; ++r) {
      std::vector<double> turns;
      for (int64_t j = 0; j < args.half; ++j) turns.push_back(rng_.uniform() * 6.3);
      for (const double turn : turns) angles.push_back(static_cast<float>(std::cos(turn)));
      for (const double turn : turns) angles.push_back(static_cast<float>(std::sin(turn)));
    }
    const auto heads = draw(rng_, args.n * args.stride, 4);
    auto want = heads;
    float* on_device = device_.put(heads);
    RopeArgs plain = args;
    plain.heads = want.data();
    plain.cos_sin = angles.data();
    ref::rope(plain);
    args.heads = on_device;
    args.cos_sin = device_.put(angles);
    device_->rope(device_.context(), args);
    const auto got = device_.get(on_device, want.size());
    // x cos - y sin: two products and a difference, with |x|, |y| <= 6 and |cos|, |sin| <= 1.
    for (size_t at = 0; at < got.size(); ++at) EXPECT_NEAR(got[at], want[at], 3 * 12 * kF32Unit);
  }
}

TEST_P(KernelConformance, StoreKvRoundsToNearestAndTouchesItsSlotsOnly) {
  for (const DType dtype : kCacheTypes) {
    for (const int64_t n : {0, 1, 20}) {
      const int64_t group = between(1, 70), width = group * between(1, 3);
      StoreKvArgs args{
          .row = {.dtype = dtype, .width = width, .group = group}, .n = n, .stride = width + between(0, 9)};
      constexpr int64_t kSlots = 64;
      std::vector<int32_t> slots(kSlots);
      std::iota(slots.begin(), slots.end(), 0);
      std::shuffle(slots.begin(), slots.end(), rng_);
      slots.resize(static_cast<size_t>(n));
      // Some rows are zero, some tiny, some large.
      auto k = draw(rng_, n * args.stride), v = draw(rng_, n * args.stride);
      for (int64_t i = 0; i < n; ++i) {
        const auto size = static_cast<float>(std::pow(10.0, static_cast<double>(between(-9, 9))));
        for (int64_t j = 0; j < width; ++j) k[static_cast<size_t>(i * args.stride + j)] *= i % 5 == 4 ? 0 : size;
      }
      CachedRows k_cache = cache_of(args.row, draw(rng_, kSlots * width));
      CachedRows v_cache = cache_of(args.row, draw(rng_, kSlots * width));
      StoreKvArgs own = args;
      own.k = device_.put(k);
      own.v = device_.put(v);
      own.slots = device_.put(slots);
      char* own_k = device_.put(k_cache.bytes);
      char* own_v = device_.put(v_cache.bytes);
      own.k_cache = own_k;
      own.v_cache = own_v;
      args.k = k.data();
      args.v = v.data();
      args.slots = slots.data();
      args.k_cache = k_cache.bytes.data();
      args.v_cache = v_cache.bytes.data();
      ref::store_kv(args);
      device_->store_kv(device_.context(), own);
      EXPECT_EQ(device_.get(own_k, k_cache.bytes.size()), k_cache.bytes);
      EXPECT_EQ(device_.get(own_v, v_cache.bytes.size()), v_cache.bytes);
    }
  }
}

// A few sequences of mixed lengths in scattered slots: decodes, chunks in the middle, whole prompts.
struct AttentionCase {
  AttentionArgs args;
  std::vector<int32_t> table, rows, starts{0}, lens;
  std::vector<float> q;
  Stored k, v;
};

KvRow heads_row(DType dtype, int64_t kv_heads, int64_t dim) {
  return {.dtype = dtype, .width = kv_heads * dim, .group = dim};
}

using QueriesAndLengths = std::vector<std::pair<int64_t, int64_t>>;  // of each sequence

AttentionCase draw_attention(Rng& rng, DType dtype, int64_t kv_heads, int64_t group, int64_t dim,
                             const QueriesAndLengths& sequences) {
  constexpr int64_t kSlots = 1024, kWidth = 1200, kRows = 8;
  std::vector<int32_t> table;
  for (int64_t i = 0; i < kRows * kWidth; ++i) table.push_back(static_cast<int32_t>(rng.below(kSlots)));
  AttentionCase c{.args = {.row = heads_row(dtype, kv_heads, dim),
                           .dtype = dtype,
                           .n_seqs = std::ssize(sequences),
                           .n_heads = kv_heads * group,
                           .n_kv_heads = kv_heads,
                           .head_dim = dim,
                           .table_width = kWidth,
                           .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(dim)))},
                  .table = std::move(table),
                  .k = Stored(dtype, draw(rng, kSlots * kv_heads * dim, 2)),
                  .v = Stored(dtype, draw(rng, kSlots * kv_heads * dim, 2))};
  for (const auto& [queries, length] : sequences) {
    c.rows.push_back(static_cast<int32_t>((c.lens.size() * 3 + 1) % kRows));
    c.starts.push_back(c.starts.back() + static_cast<int32_t>(queries));
    c.lens.push_back(static_cast<int32_t>(length));
  }
  c.args.stride = c.args.n_heads * dim + static_cast<int64_t>(rng.below(6));
  c.q = draw(rng, c.starts.back() * c.args.stride, 3);
  return c;
}

AttentionCase draw_attention(Rng& rng, DType dtype, int64_t kv_heads, int64_t group, int64_t dim, int64_t n_seqs,
                             int64_t longest) {
  const auto up_to = [&](int64_t high) { return 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(high))); };
  QueriesAndLengths sequences;
  for (int64_t s = 0; s < n_seqs; ++s) {
    const int64_t length = up_to(longest);
    sequences.emplace_back(rng.below(2) == 0 ? 1 : up_to(std::min<int64_t>(length, 290)), length);
  }
  return draw_attention(rng, dtype, kv_heads, group, dim, sequences);
}

std::vector<char> run_attention(Device& device, const AttentionCase& c) {
  AttentionArgs args = c.args;
  const size_t bytes =
      static_cast<size_t>(c.starts.back() * args.n_heads * args.head_dim) * tensor::block_bytes(args.dtype);
  char* out = device.put(std::vector<char>(bytes));
  args.q = device.put(c.q);
  args.k_cache = device.put(c.k.bytes);
  args.v_cache = device.put(c.v.bytes);
  args.slot_table = device.put(c.table);
  args.table_rows = device.put(c.rows);
  args.query_start = device.put(c.starts);
  args.seq_lens = device.put(c.lens);
  args.out = out;
  device->attention(device.context(), args);
  return device.get(out, bytes);
}

std::vector<float> rounded_to_bf16(std::vector<float> values) {
  for (float& value : values) value = tensor::bf16_to_float(tensor::float_to_bf16(value));
  return values;
}

void expect_attention_within_bound(Device& device, const AttentionCase& c) {
  const auto [dtype, heads, dim] = std::tuple(c.args.dtype, c.args.n_heads, c.args.head_dim);
  Stored want(dtype, std::vector<float>(static_cast<size_t>(c.starts.back() * heads * dim)));
  Stored got = want;
  got.bytes = run_attention(device, c);
  AttentionArgs args = c.args;
  args.q = c.q.data();
  args.k_cache = c.k.bytes.data();
  args.v_cache = c.v.bytes.data();
  args.slot_table = c.table.data();
  args.table_rows = c.rows.data();
  args.query_start = c.starts.data();
  args.seq_lens = c.lens.data();
  args.out = want.bytes.data();
  ref::attention(args);

  // With L visible positions, scores s = scale q.k:
  //   a score is off by (dim + 2) units of scale |q||k| (see linear), which moves a weight exp(s - max), relatively,
  //   by as much; exp itself is off by 4 units and its argument by one unit of at most 2 max|s|; each block of the
  //   running maximum multiplies by one exp more. Numerator and denominator are each off by that and L units, and
  //   the result is their quotient times at most max|v|.
  double largest_q = 0, largest_k = 0, largest_v = 0;
  for (int64_t row = 0; row < c.starts.back(); ++row) {
    for (int64_t h = 0; h < heads; ++h) {
      double squares = 0;
      for (int64_t d = 0; d < dim; ++d) {
        squares += std::pow(c.q[static_cast<size_t>(row * c.args.stride + h * dim + d)], 2);
      }
      largest_q = std::max(largest_q, std::sqrt(squares));
    }
  }
  for (int64_t at = 0; at < static_cast<int64_t>(c.k.size()); at += dim) {
    largest_k = std::max(largest_k, norm(c.k, at, dim));
    for (int64_t d = 0; d < dim; ++d) largest_v = std::max(largest_v, std::abs(c.v[at + d]));
  }
  const double longest = c.lens.empty() ? 0 : *std::max_element(c.lens.begin(), c.lens.end());
  const double score = largest_q * largest_k * c.args.scale;
  const double exp_units = 4 + 2 * score;
  const double weight_units =
      (static_cast<double>(dim) + 2) * score + (longest / cpu::kAttentionBlock + 2) * exp_units + longest;
  // In bf16 queries may be rounded, which moves a score by a unit of |q||k| unless they are of bf16 already, and the
  // weights of the numerator.
  const bool exact = c.q == rounded_to_bf16(c.q);
  const double rounding = dtype == DType::kBf16 ? (exact ? 0 : std::expm1(2 * kBf16Unit * score)) + kBf16Unit : 0;
  SCOPED_TRACE(fmt::format("heads {} kv heads {} dim {} {}", heads, c.args.n_kv_heads, dim, tensor::to_string(dtype)));
  expect_within([&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; },
                static_cast<int64_t>(want.size()),
                [&](int64_t at) {
                  return 2.02 * weight_units * kF32Unit * largest_v + 1.01 * rounding * largest_v +
                         2.01 * unit_of(dtype) * std::abs(want[at]);
                });
}

TEST_P(KernelConformance, AttentionStaysWithinItsRoundingBound) {
  const int64_t dims[] = {1, 5, 16, 64, 80, 96, 128}, groups[] = {1, 2, 3, 7};
  for (int i = 0; i < 40; ++i) {
    const int64_t longest = i >= 32          ? 1200  // long enough to be cut
                            : i / 2 % 2 == 0 ? 290
                                             : 40;
    expect_attention_within_bound(
        device_,
        draw_attention(rng_, kDtypes[i % 2], between(1, 3), groups[rng_.below(std::size(groups))],
                       dims[rng_.below(std::size(dims))], i % 8 == 1 ? between(8, 18) : between(0, 4), longest));
  }
}

// Of heads that are packed for products in bf16: blocks of positions beyond the first, whole and in part, rows that see
// nothing of some; short turns after long contexts, which are cut, also where rows see nothing of a part. Queries of
// bf16 leave a bound that is a small part of what is expected.
TEST_P(KernelConformance, AttentionOfManyRowsInBf16) {
  const auto expect = [&](int64_t kv_heads, int64_t group, int64_t dim, const QueriesAndLengths& sequences) {
    AttentionCase c = draw_attention(rng_, DType::kBf16, kv_heads, group, dim, sequences);
    c.q = rounded_to_bf16(std::move(c.q));
    expect_attention_within_bound(device_, c);
  };
  for (const int64_t dim : {64, 128}) {
    for (const int64_t group : {1, 3, 6}) {
      expect(2, group, dim, {{290, 290}, {70, 600}, {33, 290}, {1, 500}});
      expect(1, group, dim, {{8, 1100}});
      expect(1, group, dim, {{12, 513}, {200, 600}});
    }
  }
}

// Over rows of `cached` and over their values in float32.
void expect_attention_over_its_values(Device& device, Rng& rng, DType cached, AttentionCase c) {
  const int64_t kv_heads = c.args.n_kv_heads, dim = c.args.head_dim;
  const KvRow row = heads_row(cached, kv_heads, dim);
  const auto count = static_cast<int64_t>(c.k.size());
  const CachedRows k = cache_of(row, draw(rng, count, 2)), v = cache_of(row, draw(rng, count, 2));
  c.args.row = heads_row(DType::kF32, kv_heads, dim);
  c.k = Stored(DType::kF32, k.values);
  c.v = Stored(DType::kF32, v.values);
  const auto want = run_attention(device, c);
  c.args.row = row;
  c.k.bytes = k.bytes;
  c.v.bytes = v.bytes;
  EXPECT_EQ(run_attention(device, c), want)
      << tensor::to_string(cached) << " " << tensor::to_string(c.args.dtype) << " dim " << dim;
}

TEST_P(KernelConformance, AttentionOverAnyTypeOfCacheIsThatOverItsValues) {
  for (const DType cached : kCacheTypes) {
    for (const DType dtype : kDtypes) {
      // Of heads whose rows of bf16 are not multiplied as they are stored, in another order.
      const int64_t dims[] = {5, 16, 48, 80};
      expect_attention_over_its_values(
          device_, rng_, cached,
          draw_attention(rng_, dtype, between(1, 3), 2, dims[rng_.below(std::size(dims))], 3, 100));
      // All rows are of products, for which keys and values are packed where the machine does so.
      for (const int64_t dim : {64, 128}) {
        expect_attention_over_its_values(device_, rng_, cached,
                                         draw_attention(rng_, dtype, 2, 2, dim, {{40, 40}, {20, 300}, {70, 130}}));
      }
    }
  }
}

TEST_P(KernelConformance, WhatIsNotFiniteInTheCacheStaysSo) {
  const KvRow row{.dtype = DType::kF8E4M3, .width = 32, .group = 16};
  std::vector<float> k(32, 1.0f);
  k[3] = kNan;
  char* cache = device_.put(std::vector<char>(static_cast<size_t>(row.bytes())));
  device_->store_kv(device_.context(), {.k = device_.put(k),
                                        .slots = device_.put(std::vector<int32_t>{0}),
                                        .k_cache = cache,
                                        .row = row,
                                        .n = 1,
                                        .stride = 32});
  const auto stored = device_.get(cache, static_cast<size_t>(row.bytes()));
  float scales[2];
  std::memcpy(scales, stored.data() + 32, 8);
  EXPECT_TRUE(std::isnan(scales[0]));
  EXPECT_EQ(scales[1], 1 / 448.0f);
}

TEST_P(KernelConformance, AttentionDoesNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  for (const DType dtype : kDtypes) {
    const AttentionCase drawn = draw_attention(rng_, dtype, 3, 3, 64, 4, 290);
    EXPECT_EQ(run_attention(device_, drawn), run_attention(alone, drawn)) << tensor::to_string(dtype);
    for (const int64_t dim : {64, 128}) {
      const AttentionCase c = draw_attention(rng_, dtype, 3, 3, dim, {{290, 290}, {40, 600}, {1, 600}, {3, 900}});
      EXPECT_EQ(run_attention(device_, c), run_attention(alone, c)) << tensor::to_string(dtype) << " dim " << dim;
      const AttentionCase cut = draw_attention(rng_, dtype, 1, 3, dim, {{12, 1100}, {200, 600}});
      EXPECT_EQ(run_attention(device_, cut), run_attention(alone, cut)) << tensor::to_string(dtype) << " dim " << dim;
    }
  }
}

TEST_P(KernelConformance, AttentionSurvivesScoresOfAnySize) {
  // Scores of +-40000: all weight on one position, the others underflow; nothing overflows.
  AttentionCase c = draw_attention(rng_, DType::kF32, 1, 1, 16, 3, 200);
  c.args.scale = 3000;
  const auto bytes = run_attention(device_, c);
  const auto* values = reinterpret_cast<const float*>(bytes.data());
  for (size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
    ASSERT_TRUE(std::isfinite(values[i]) && std::abs(values[i]) <= 3.001f) << values[i];
  }
}

TEST_P(KernelConformance, SiluMulStaysWithinItsRoundingBound) {
  for (int i = 0; i < 40; ++i) {
    SiluMulArgs args{.out_dtype = kDtypes[i % 2], .n = between(0, 40), .width = between(1, 200)};
    // Up to where exp overflows a float and beyond.
    const auto in = draw(rng_, args.n * 2 * args.width, i % 8 == 0 ? 100 : 4);
    Stored want(args.out_dtype, std::vector<float>(static_cast<size_t>(args.n * args.width)));
    Stored got = want;
    char* out = device_.put(want.bytes);
    SiluMulArgs plain = args;
    plain.gate_up = in.data();
    plain.out = want.bytes.data();
    ref::silu_mul(plain);
    args.gate_up = device_.put(in);
    args.out = out;
    device_->silu_mul(device_.context(), args);
    got.bytes = device_.get(out, want.bytes.size());
    // exp is off by 4 units; the sum, the quotient and the product add one each. Beyond |gate| = 87 exp is clamped,
    // where the sigmoid is below e^-87.
    expect_within([&](int64_t at) { return got[at]; }, [&](int64_t at) { return want[at]; }, args.n * args.width,
                  [&](int64_t at) {
                    const int64_t row = at / args.width, column = at % args.width;
                    const double gate = in[static_cast<size_t>(2 * row * args.width + column)];
                    const double up = in[static_cast<size_t>((2 * row + 1) * args.width + column)];
                    return std::abs(want[at]) * (8.1 * kF32Unit + 2.01 * unit_of(args.out_dtype)) +
                           std::abs(gate * up) * std::exp(-87);
                  });
  }
}

TEST_P(KernelConformance, GatherRowsCopiesExactly) {
  for (const int64_t n : {0, 1, 9}) {
    const int64_t width = between(1, 100);
    const auto in = draw(rng_, 20 * width);
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < n; ++i) rows.push_back(static_cast<int32_t>(between(0, 19)));
    std::vector<float> want(static_cast<size_t>(n * width));
    float* out = device_.put(want);
    ref::gather_rows({.in = in.data(), .rows = rows.data(), .out = want.data(), .n = n, .width = width});
    device_->gather_rows(device_.context(),
                         {.in = device_.put(in), .rows = device_.put(rows), .out = out, .n = n, .width = width});
    EXPECT_EQ(device_.get(out, want.size()), want);
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, KernelConformance, ::testing::ValuesIn(cases()), case_name);

TEST(BackendRegistryTest, NamesTheDevicesItKnows) {
  const auto backend = make_backend("abacus", 1);
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.error().code, ErrorCode::kBadOption);
  for (const BackendRow& row : backends()) EXPECT_NE(backend.error().message.find(row.name), std::string::npos);
}

}  // namespace
}  // namespace sluice::kernels
