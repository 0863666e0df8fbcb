// gated_linear() makes the very bits that linear() and silu_mul() make, however its weight is kept and divided.
#include "kernels/kernel_fixture.h"

namespace sluice::kernels {
namespace {

class GatedLinear : public KernelConformance {
 protected:
  // Packed, from rows of float32 in [-1, 1] or, where blocks are kept, from blocks of the like.
  std::vector<char> draw_weight(const LinearShape& shape) {
    const size_t row = tensor::bytes_of(shape.stored, static_cast<size_t>(shape.in));
    const auto values = draw(rng_, shape.out * shape.in, 0.1);
    std::vector<char> packed(device_->packed_bytes(shape));
    device_->pack(
        shape,
        [&](int64_t first, int64_t count, void* to) {
          if (shape.stored == DType::kF32) {
            std::memcpy(to, values.data() + first * shape.in, static_cast<size_t>(count) * row);
            return;
          }
          // Blocks of Q8_0: a scale in half precision, here 1/1024, and 32 values of eight bits.
          auto* blocks = static_cast<uint8_t*>(to);
          for (size_t i = 0; i < static_cast<size_t>(count) * row; ++i) {
            const size_t at = i % 34;
            blocks[i] = at == 0 ? 0 : at == 1 ? 0x14 : static_cast<uint8_t>(rng_.below(256));
          }
        },
        packed.data());
    return packed;
  }

  // Of what was NaN everywhere.
  void expect_untouched(const float* products, int64_t count) {
    const auto values = device_.get(products, static_cast<size_t>(count));
    EXPECT_TRUE(std::ranges::all_of(values, [](float value) { return std::isnan(value); }));
  }

  void expect_equal_bits(const LinearShape& shape, DType out_dtype, int64_t n) {
    const int64_t width = shape.out / 2, padded = device_->padded_rows(n);
    const Stored in(shape.dtype, draw(rng_, padded * shape.in, 3));
    float* gate_up = device_.put(std::vector<float>(static_cast<size_t>(padded * shape.out), kNan));
    LinearArgs product{.shape = &shape,
                       .weight = device_.put(draw_weight(shape)),
                       .in = device_.put(in.bytes),
                       .out = gate_up,
                       .n = n};
    const std::vector<char> untouched((static_cast<size_t>(n * width) + 16) * tensor::block_bytes(out_dtype), 'x');
    char* got = device_.put(untouched);
    char* want = device_.put(untouched);
    device_->gated_linear(device_.context(), {.product = product, .out = got, .out_dtype = out_dtype});
    if (device_->fuses_gates(shape)) expect_untouched(gate_up, padded * shape.out);
    product.out = device_.put(std::vector<float>(static_cast<size_t>(padded * shape.out)));
    device_->linear(device_.context(), product);
    device_->silu_mul(device_.context(),
                      {.gate_up = product.out, .out = want, .out_dtype = out_dtype, .n = n, .width = width});
    EXPECT_EQ(device_.get(got, untouched.size()), device_.get(want, untouched.size()))
        << "n " << n << " in " << shape.in << " out " << shape.out << " " << tensor::to_string(shape.dtype) << " of "
        << tensor::to_string(shape.stored) << " to " << tensor::to_string(out_dtype);
  }
};

TEST_P(GatedLinear, IsTheProductAndWhatComesOfItToTheBit) {
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    // 1,536 are of several slabs, 192 of blocks that threads share by halves; 100 cannot be divided. 70 and 1,700 are
    // sums whose last part is short.
    for (const auto& [in, width] :
         std::initializer_list<std::pair<int64_t, int64_t>>{{576, 1536}, {70, 192}, {1700, 64}, {96, 100}}) {
      for (const int64_t n : {0, 1, 5, 17, 70, in == 576 ? 530 : 130}) {
        expect_equal_bits({.in = in, .out = 2 * width, .dtype = dtype}, n % 2 == 0 ? dtype : DType::kF32, n);
      }
    }
  }
}

TEST_P(GatedLinear, OfKeptBlocksToo) {
  for (const DType dtype : kDtypes) {
    LinearShape shape{.in = 256, .out = 2 * 128, .dtype = dtype, .stored = DType::kQ8_0, .rounded = true};
    if (!device_->keeps(shape)) continue;
    for (const int64_t n : {1, 20, 100}) expect_equal_bits(shape, dtype, n);
  }
}

TEST_P(GatedLinear, OfExpertsLeavesRowsOfNobody) {
  const std::vector<int32_t> counts{0, 3, 300, 17, 1}, starts{0, 0, 16, 336, 368};
  const int64_t experts = std::ssize(counts), rows = 400;
  std::vector<int32_t> listed{-1};
  for (size_t e = 0; e < counts.size(); ++e) {
    for (int32_t r = 0; r < counts[e]; ++r) listed.push_back(starts[e] + r);
  }
  for (const DType dtype : kDtypes) {
    if (!device_->multiplies(dtype)) continue;
    for (const int64_t width : {192, 100}) {
      const LinearShape shape{.in = 96, .out = 2 * width, .dtype = dtype};
      const size_t stride = (device_->packed_bytes(shape) + 63) / 64 * 64;
      std::vector<char> weights(stride * static_cast<size_t>(experts));
      for (int64_t e = 0; e < experts; ++e) {
        std::ranges::copy(draw_weight(shape), weights.begin() + e * static_cast<int64_t>(stride));
      }
      const Stored in(dtype, draw(rng_, rows * shape.in, 3));
      GroupedLinearArgs product{.shape = &shape,
                                .weights = device_.put(weights),
                                .weight_stride = stride,
                                .in = device_.put(in.bytes),
                                .starts = device_.put(starts),
                                .counts = device_.put(counts),
                                .out = device_.put(std::vector<float>(static_cast<size_t>(rows * shape.out), kNan)),
                                .experts = experts};
      const std::vector<char> untouched(static_cast<size_t>(rows * width) * tensor::block_bytes(dtype), 'x');
      char* got = device_.put(untouched);
      char* want = device_.put(untouched);
      const int32_t* meant = device_.put(listed);
      device_->gated_grouped_linear(
          device_.context(),
          {.product = product, .out = got, .out_dtype = dtype, .rows = meant, .n = std::ssize(listed)});
      if (device_->fuses_gates(shape)) expect_untouched(product.out, rows * shape.out);
      device_->grouped_linear(device_.context(), product);
      device_->silu_mul(device_.context(), {.gate_up = product.out,
                                            .out = want,
                                            .out_dtype = dtype,
                                            .n = std::ssize(listed),
                                            .width = width,
                                            .rows = meant});
      EXPECT_EQ(device_.get(got, untouched.size()), device_.get(want, untouched.size()))
          << "width " << width << " " << tensor::to_string(dtype);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, GatedLinear, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace sluice::kernels
