// Products of weights that stay in FP8, as in kernel_conformance_test.cc.
#include "kernels/kernel_fixture.h"
#include "kernels/ref/ref.h"

namespace sluice::kernels {
namespace {

class Fp8Conformance : public KernelConformance {};

// A weight [out, in] in rows of FP8, and its values.
struct F8Weight {
  F8Weight(Rng& rng, int64_t out, int64_t in) : rows(static_cast<size_t>(out) * scaled_row_bytes(in)) {
    for (int64_t j = 0; j < out; ++j) {
      char* row = rows.data() + static_cast<size_t>(j) * scaled_row_bytes(in);
      for (int64_t k = 0; k < in; ++k) {
        const int64_t block = k / kScaledValues;
        if (k % kScaledValues == 0) {
          const auto scale = static_cast<float>(0.001 + 0.002 * rng.uniform());
          std::memcpy(row + 4 * block, &scale, 4);
        }
        auto bits = static_cast<uint8_t>(rng.below(256));
        if ((bits & 0x7f) == 0x7f) bits ^= 1;  // no NaN; subnormals and zeros as they come
        row[4 * scales_per_row(in) + k] = static_cast<char>(bits);
        float scale;
        std::memcpy(&scale, row + 4 * block, 4);
        values.push_back(tensor::f8_e4m3_to_float(bits) * scale);
      }
    }
  }
  std::vector<char> packed(const Device& device, const LinearShape& shape) const {
    std::vector<char> packed(device->packed_bytes(shape));
    device->pack(
        shape,
        [&](int64_t first, int64_t count, void* to) {
          std::copy_n(rows.data() + static_cast<size_t>(first) * scaled_row_bytes(shape.in),
                      static_cast<size_t>(count) * scaled_row_bytes(shape.in), static_cast<char*>(to));
        },
        packed.data());
    return packed;
  }

  std::vector<char> rows;
  std::vector<float> values;
};

TEST_P(Fp8Conformance, LinearOfFp8RowsEqualsLinearOfTheirValues) {
  for (const DType dtype : kDtypes) {
    if (!device_->keeps({.in = 128, .dtype = dtype, .stored = DType::kF8E4M3})) continue;
    struct Size {
      int64_t n, in, out;
    };
    // Several pieces of rows, a last block of values of two and a last tile of two columns; the same in odd rows.
    std::vector<Size> sizes{{300, 256, 130}, {300, 130, 130}, {300, 129, 130}};
    for (const int64_t n : {0, 1, 2, 3, 4, 5, 7, 16, 17, 70, 300}) {
      for (const bool odd : {false, true}) sizes.push_back({n, 2 * between(1, 150) - (odd ? 1 : 0), between(1, 200)});
    }
    for (const auto& [n, in, out] : sizes) {
      const LinearShape shape{.in = in, .out = out, .dtype = dtype, .stored = DType::kF8E4M3};
      const bool bias = rng_.below(2) == 0, accumulate = rng_.below(2) == 0;
      const F8Weight drawn(rng_, out, in);
      const Stored weight(DType::kF32, drawn.values);
      const Stored x(dtype, draw(rng_, device_->padded_rows(n) * in, 3));
      const auto biases = draw(rng_, out);
      const auto before = draw(rng_, device_->padded_rows(n) * out);

      const auto packed = drawn.packed(device_, shape);
      // A byte for each value but for scales and what tiles are filled with.
      EXPECT_LE(packed.size(), static_cast<size_t>((out + 63) * ((in + 31) + 4 * scales_per_row(in))));
      float* result = device_.put(before);
      device_->linear(device_.context(), {.shape = &shape,
                                          .weight = device_.put(packed),
                                          .in = device_.put(x.bytes),
                                          .out = result,
                                          .n = n,
                                          .bias = bias ? device_.put(biases) : nullptr,
                                          .accumulate = accumulate});
      const auto got = device_.get(result, before.size());
      std::vector<float> wide;
      for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) wide.push_back(static_cast<float>(x[i]));
      auto want = before;
      const LinearShape plain{.in = in, .out = out};
      ref::linear({.shape = &plain,
                   .weight = weight.bytes.data(),
                   .in = wide.data(),
                   .out = want.data(),
                   .n = n,
                   .bias = bias ? biases.data() : nullptr,
                   .accumulate = accumulate});
      SCOPED_TRACE(fmt::format("{} n {} in {} out {}", tensor::to_string(dtype), n, in, out));
      std::vector<double> row_norms, column_norms;
      for (int64_t r = 0; r < n; ++r) row_norms.push_back(norm(x, r * in, in));
      for (int64_t j = 0; j < out; ++j) column_norms.push_back(norm(weight, j * in, in));
      // As for any product, with a unit more for the scale of a value, on either side; in bf16 many rows are multiplied
      // by the values rounded to it.
      const double rounded = dtype == DType::kBf16 ? kBf16Unit : 0;
      expect_within([&](int64_t at) { return got[static_cast<size_t>(at)]; },
                    [&](int64_t at) { return want[static_cast<size_t>(at)]; }, n * out,
                    [&](int64_t at) {
                      const auto r = static_cast<size_t>(at / out), j = static_cast<size_t>(at % out);
                      double terms = row_norms[r] * column_norms[j];
                      if (bias) terms += std::abs(biases[j]);
                      if (accumulate) terms += std::abs(before[static_cast<size_t>(at)]);
                      return 1.01 * (rounded + static_cast<double>(in + 5) * kF32Unit) * terms;
                    });
    }
  }
}

// As parts of all rows, of tiles whole and not.
TEST_P(Fp8Conformance, LinearDoesNotDependOnTheNumberOfThreads) {
  Device alone(GetParam(), 1);
  for (const DType dtype : kDtypes) {
    for (const int64_t out : {576, 600}) {
      const int64_t in = 256, n = 300;
      const LinearShape shape{.in = in, .out = out, .dtype = dtype, .stored = DType::kF8E4M3};
      if (!device_->keeps(shape)) continue;
      const F8Weight weight(rng_, out, in);
      const Stored x(dtype, draw(rng_, device_->padded_rows(n) * in));
      const auto run = [&](Device& device) {
        float* result = device.put(std::vector<float>(static_cast<size_t>(device->padded_rows(n) * out)));
        device->linear(device.context(), {.shape = &shape,
                                          .weight = device.put(weight.packed(device, shape)),
                                          .in = device.put(x.bytes),
                                          .out = result,
                                          .n = n});
        return device.get(result, static_cast<size_t>(n * out));
      };
      EXPECT_EQ(run(device_), run(alone)) << tensor::to_string(dtype) << ", out " << out;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Registry, Fp8Conformance, ::testing::ValuesIn(cases()), case_name);

}  // namespace
}  // namespace sluice::kernels
