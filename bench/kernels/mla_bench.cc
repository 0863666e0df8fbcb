// Latent attention at DeepSeek's sizes in bf16, and products of FP8 weights beside those of bf16: time, arithmetic, and
// bandwidth over the cache or the weights, beside what this machine reads and multiplies at best.
//
// usage: mla_bench [threads] [products | scattered]
//
// With `products` only those; with `scattered` cached rows lie in random order, else one after the other.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/machine.h"
#include "base/rng.h"
#include "bench/kernels/machine.h"
#include "kernels/kernels.h"

using namespace sluice;
using bench::seconds;
using kernels::DType;

namespace {

constexpr int64_t kLatent = 512, kRotary = 64, kNope = 128, kValue = 128;

// Values of bf16 near one, or any float.
std::vector<uint16_t> values(int64_t count) {
  Rng rng(7);
  std::vector<uint16_t> out(static_cast<size_t>(count));
  for (auto& value : out) value = tensor::float_to_bf16(static_cast<float>(rng.uniform() - 0.5));
  return out;
}

// Sequences of `length` cached tokens, the last `queries` of them new.
struct Batch {
  int64_t sequences, queries, length;
  std::vector<int32_t> table, rows, starts, lens;
  kernels::KvRow row;
  std::vector<uint16_t> bf16;
  std::vector<char> f8;

  Batch(int64_t n, int64_t q, int64_t l, bool scattered, DType type = DType::kBf16)
      : sequences(n), queries(q), length(l), row{.dtype = type, .width = kLatent + kRotary, .group = kRotary} {
    const int64_t slots = n * l + 1;
    if (type == DType::kBf16) {
      bf16 = values(slots * row.width);
    } else {
      f8.resize(static_cast<size_t>(slots * row.bytes()), 0x30);  // and scales of 6e-10
    }
    for (int64_t i = 0; i < n * l; ++i) table.push_back(static_cast<int32_t>(i + 1));
    Rng rng(7);
    for (size_t i = table.size(); scattered && i > 1; --i) std::swap(table[i - 1], table[rng.below(i)]);
    for (int64_t s = 0; s <= n; ++s) starts.push_back(static_cast<int32_t>(s * q));
    for (int64_t s = 0; s < n; ++s) {
      rows.push_back(static_cast<int32_t>(s));
      lens.push_back(static_cast<int32_t>(l));
    }
  }
  const void* cache() const { return row.dtype == DType::kBf16 ? static_cast<const void*>(bf16.data()) : f8.data(); }
};

void absorbed(const kernels::Backend& backend, int64_t heads, const Batch& batch) {
  const int64_t n = batch.sequences * batch.queries;
  std::vector<float> latent(static_cast<size_t>(n * heads * kLatent), 0.01f);
  std::vector<float> rotary(static_cast<size_t>(n * heads * kRotary), 0.01f), out(latent.size());
  const double time = seconds([&] {
    backend.latent_attention({}, {.q_latent = latent.data(),
                                  .q_rotary = rotary.data(),
                                  .q_rotary_stride = heads * kRotary,
                                  .q_rotary_head_stride = kRotary,
                                  .cache = batch.cache(),
                                  .row = batch.row,
                                  .dtype = DType::kBf16,
                                  .slot_table = batch.table.data(),
                                  .table_rows = batch.rows.data(),
                                  .query_start = batch.starts.data(),
                                  .seq_lens = batch.lens.data(),
                                  .out = out.data(),
                                  .n_seqs = batch.sequences,
                                  .n_heads = heads,
                                  .latent = kLatent,
                                  .rotary = kRotary,
                                  .table_width = batch.length,
                                  .scale = 0.07f});
  });
  const double pairs = static_cast<double>(n * heads * batch.length);
  fmt::print("absorbed, {:7}, {:3} heads, {:2} sequences of {:5}: {:8.2f} ms, {:5.0f} GFLOP/s, {:5.1f} GB/s\n",
             tensor::to_string(batch.row.dtype), heads, batch.sequences, batch.length, time * 1e3,
             2e-9 * pairs * (2 * kLatent + kRotary) / time,
             static_cast<double>(batch.sequences * batch.length * batch.row.bytes()) * 1e-9 / time);
}

void expanded(const kernels::Backend& backend, int64_t heads, const Batch& batch) {
  const kernels::LinearShape shape{.in = kLatent, .out = kNope, .dtype = DType::kBf16, .whole = true};
  static_assert(kNope == kValue);
  const size_t stride = (backend.packed_bytes(shape) + 63) / 64 * 64;
  const auto weights = values(static_cast<int64_t>(stride) * heads / 2);
  const int64_t n = batch.sequences * batch.queries, dim = kNope + kRotary;
  std::vector<float> q(static_cast<size_t>(n * heads * dim), 0.01f);
  std::vector<uint16_t> out(static_cast<size_t>(n * heads * kValue));
  const double time = seconds([&] {
    backend.expanded_attention({}, {.q = q.data(),
                                    .q_stride = heads * dim,
                                    .cache = batch.cache(),
                                    .row = batch.row,
                                    .dtype = DType::kBf16,
                                    .key_shape = &shape,
                                    .keys = weights.data(),
                                    .key_stride = stride,
                                    .value_shape = &shape,
                                    .values = weights.data(),
                                    .value_stride = stride,
                                    .slot_table = batch.table.data(),
                                    .table_rows = batch.rows.data(),
                                    .query_start = batch.starts.data(),
                                    .seq_lens = batch.lens.data(),
                                    .out = out.data(),
                                    .n_seqs = batch.sequences,
                                    .n_heads = heads,
                                    .rotary = kRotary,
                                    .table_width = batch.length,
                                    .scale = 0.07f});
  });
  const auto q_count = static_cast<double>(batch.queries), l = static_cast<double>(batch.length);
  const double pairs = q_count * l - q_count * (q_count - 1) / 2;
  const double operations = l * kLatent * (kNope + kValue) + pairs * (dim + kValue);
  fmt::print("expanded, {:3} heads, {:4} new of {:5}: {:8.2f} ms, {:5.0f} GFLOP/s\n", heads, batch.queries,
             batch.length, time * 1e3, 2e-9 * static_cast<double>(heads) * operations / time);
}

double product(const kernels::Backend& backend, const kernels::LinearShape& shape, int64_t n) {
  const size_t bytes = (backend.packed_bytes(shape) + 63) / 64 * 64;
  // Weights are multiplied by in turn: from memory, where it is reading them that takes the time.
  const int64_t copies = n > 64 ? 4 : cold_bytes() / static_cast<int64_t>(bytes) + 1;
  auto* weights = static_cast<char*>(backend.allocate(bytes * static_cast<size_t>(copies)).value());
  const auto fill = [&](int64_t, int64_t count, void* to) {
    if (shape.stored == DType::kF8E4M3) {
      std::memset(to, 0x3c, static_cast<size_t>(count) * kernels::scaled_row_bytes(shape.in));
    } else {
      std::fill_n(static_cast<float*>(to), count * shape.in, 0.01f);
    }
  };
  for (int64_t i = 0; i < copies; ++i) backend.pack(shape, fill, weights + static_cast<size_t>(i) * bytes);
  const auto in = values(backend.padded_rows(n) * shape.in);
  std::vector<float> out(static_cast<size_t>(backend.padded_rows(n) * shape.out));
  const double time = seconds([&] {
    for (int64_t i = 0; i < copies; ++i) {
      backend.linear({}, {.shape = &shape,
                          .weight = weights + static_cast<size_t>(i) * bytes,
                          .in = in.data(),
                          .out = out.data(),
                          .n = n});
    }
  });
  backend.release(weights, bytes * static_cast<size_t>(copies));
  return time / static_cast<double>(copies);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const auto backend = kernels::make_backend("cpu", threads).value();
  if (!backend->multiplies(DType::kBf16)) {
    fmt::print("this machine has no products in bf16\n");
    return 1;
  }
  fmt::print("{}\n", bench::to_string(bench::measure_machine(threads), threads));
  const std::string_view what = argc > 2 ? argv[2] : "";
  const bool scattered = what == "scattered";
  for (const int64_t heads :
       what != "products" ? std::vector<int64_t>{16, 128} : std::vector<int64_t>()) {  // V2-Lite and V3
    for (const int64_t sequences : {1, 16}) {
      for (const int64_t length : {1024, 8192}) {
        for (const DType type : {DType::kBf16, DType::kF8E4M3}) {
          absorbed(*backend, heads, Batch(sequences, 1, length, scattered, type));
        }
      }
    }
    for (const int64_t queries : {128, 512}) {
      for (const int64_t prefix : {0, 2048}) expanded(*backend, heads, Batch(1, queries, prefix + queries, scattered));
    }
  }
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{7168, 4096}, {2048, 2816}}) {
    for (const int64_t n : {1, 2, 4, 8, 16, 64, 512}) {
      const double bf16 = product(*backend, {.in = in, .out = out, .dtype = DType::kBf16}, n);
      const double fp8 = product(*backend, {.in = in, .out = out, .dtype = DType::kBf16, .stored = DType::kF8E4M3}, n);
      fmt::print("[{}, {}] with {:3} rows: bf16 {:7.3f} ms, fp8 {:7.3f} ms, {:.2f} of it\n", out, in, n, bf16 * 1e3,
                 fp8 * 1e3, fp8 / bf16);
    }
  }
}
