#include "bench/kernels/machine.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::bench {
namespace {

double read_rate(kernels::ThreadPool& pool) {
  constexpr size_t kPiece = 1 << 20, kPieces = 512;
  const std::vector<uint64_t> words(kPieces * kPiece / 8, 1);
  std::vector<uint64_t> sums(static_cast<size_t>(pool.size()) * 8);
  const double time = seconds([&] {
    pool.parallel_for(kPieces, [&](int64_t piece, int thread) {
      const uint64_t* from = words.data() + static_cast<size_t>(piece) * kPiece / 8;
      uint64_t sum[8] = {};
      for (size_t i = 0; i < kPiece / 8; i += 8) {
        for (size_t j = 0; j < 8; ++j) sum[j] ^= from[i + j];
      }
      for (const uint64_t part : sum) sums[static_cast<size_t>(thread) * 8] ^= part;
    });
  });
  // Each is of an even number of ones; looked at, so that the compiler leaves nothing out.
  for (const uint64_t sum : sums) SLUICE_CHECK(sum == 0, "memory that was read is not what was written");
  return static_cast<double>(kPieces * kPiece) / time;
}

double product_rate(const kernels::Backend& backend, kernels::DType dtype) {
  if (!backend.multiplies(dtype)) return 0;
  const kernels::LinearShape shape{.in = 2048, .out = 4096, .dtype = dtype};
  constexpr int64_t kRows = 256;
  void* weight = backend.allocate(backend.packed_bytes(shape)).value();
  backend.pack(
      shape,
      [&](int64_t, int64_t count, void* to) {
        std::memset(to, 0, static_cast<size_t>(count * shape.in) * sizeof(float));
      },
      weight);
  const size_t in_bytes = kRows * 2048 * sizeof(float), out_bytes = kRows * 4096 * sizeof(float);
  void* in = backend.allocate(in_bytes).value();
  void* out = backend.allocate(out_bytes).value();
  const double time = seconds([&] {
    backend.linear({}, {.shape = &shape, .weight = weight, .in = in, .out = static_cast<float*>(out), .n = kRows});
  });
  backend.release(weight, backend.packed_bytes(shape));
  backend.release(in, in_bytes);
  backend.release(out, out_bytes);
  return 2.0 * static_cast<double>(kRows * shape.in * shape.out) / time;
}

}  // namespace

Machine measure_machine(int threads) {
  kernels::ThreadPool pool(threads);
  const auto backend = kernels::make_backend("cpu", threads).value();
  return {.read = read_rate(pool),
          .bf16 = product_rate(*backend, kernels::DType::kBf16),
          .f32 = product_rate(*backend, kernels::DType::kF32)};
}

std::string to_string(const Machine& machine, int threads) {
  return fmt::format("{} threads read {:.1f} GB/s and multiply {:.0f} GFLOP/s in bf16, {:.0f} in float32", threads,
                     machine.read * 1e-9, machine.bf16 * 1e-9, machine.f32 * 1e-9);
}

}  // namespace sluice::bench
