#include "bench/kernels/machine.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstring>
#include <dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "base/huge_pages.h"
#include "base/machine.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::bench {
namespace {

double read_rate(kernels::ThreadPool& pool) {
  constexpr size_t kPiece = 1 << 20;
  const size_t pieces = static_cast<size_t>(cold_bytes()) / kPiece;
  std::vector<uint64_t> words;
  words.reserve(pieces * kPiece / 8);
  prefer_huge_pages(words.data(), words.capacity() * 8);  // as weights lie
  words.resize(pieces * kPiece / 8, 1);
  std::vector<uint64_t> sums(static_cast<size_t>(pool.size()) * 8);
  const double time = seconds([&] {
    pool.parallel_for(static_cast<int64_t>(pieces), [&](int64_t piece, int thread) {
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
  return static_cast<double>(pieces * kPiece) / time;
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

// One large product of bytes by oneDNN: each thread multiplies slabs of columns, as our own products do.
double eight_bit_rate(kernels::ThreadPool& pool) {
  using Memory = dnnl::memory;
  constexpr int64_t kRows = 256, kIn = 2048, kColumns = 256, kSlabs = 16;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const Memory::desc in({kRows, kIn}, Memory::data_type::u8, Memory::format_tag::ab);
  const Memory::desc weight({kIn, kColumns}, Memory::data_type::s8, Memory::format_tag::any);
  const Memory::desc out({kRows, kColumns}, Memory::data_type::s32, Memory::format_tag::ab);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(in, weight, out), attributes, engine);
  const dnnl::matmul product(desc);

  const size_t weight_bytes = desc.weights_desc().get_size();
  std::vector<uint8_t> values(static_cast<size_t>(kRows * kIn), 1);
  std::vector<std::vector<char>> weights(kSlabs, std::vector<char>(weight_bytes));
  std::vector<std::vector<int32_t>> sums(kSlabs, std::vector<int32_t>(static_cast<size_t>(kRows * kColumns)));
  std::vector<std::vector<char>> scratch(static_cast<size_t>(pool.size()));
  std::vector<dnnl::stream> streams;
  for (auto& own : scratch) {
    own.resize(desc.scratchpad_desc().get_size() + 1);
    streams.emplace_back(engine);
  }
  const double time = seconds([&] {
    pool.parallel_for(kSlabs, [&](int64_t slab, int thread) {
      const auto i = static_cast<size_t>(slab), t = static_cast<size_t>(thread);
      product.execute(streams[t], {{DNNL_ARG_SRC, Memory(in, engine, values.data())},
                                   {DNNL_ARG_WEIGHTS, Memory(desc.weights_desc(), engine, weights[i].data())},
                                   {DNNL_ARG_DST, Memory(out, engine, sums[i].data())},
                                   {DNNL_ARG_SCRATCHPAD, Memory(desc.scratchpad_desc(), engine, scratch[t].data())}});
    });
  });
  return 2.0 * static_cast<double>(kRows * kIn * kColumns * kSlabs) / time;
}

}  // namespace

Machine measure_machine(int threads) {
  kernels::ThreadPool pool(threads);
  const auto backend = kernels::make_backend("cpu", threads).value();
  return {.read = read_rate(pool),
          .bf16 = product_rate(*backend, kernels::DType::kBf16),
          .f32 = product_rate(*backend, kernels::DType::kF32),
          .eight_bits = eight_bit_rate(pool)};
}

std::string to_string(const Machine& machine, int threads) {
  return fmt::format(
      "{} threads read {:.1f} GB/s and multiply {:.0f} GFLOP/s in bf16, {:.0f} in float32, {:.0f} G operations/s in "
      "eight "
      "bits",
      threads, machine.read * 1e-9, machine.bf16 * 1e-9, machine.f32 * 1e-9, machine.eight_bits * 1e-9);
}

}  // namespace sluice::bench
