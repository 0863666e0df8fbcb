// One layer's experts at the widths of published models, random weights and even routing: time, bandwidth over the
// weights of the experts touched, and arithmetic, beside what this machine reads and multiplies at best.
//
// usage: moe_bench [threads]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/rng.h"
#include "bench/kernels/machine.h"
#include "kernels/kernels.h"

using namespace sluice;
using bench::seconds;
using kernels::DType;

namespace {

struct Widths {
  const char* name;
  int64_t hidden, expert_width, experts, top_k;
};

template <class T>
T* take(const kernels::Backend& backend, int64_t count) {
  return static_cast<T*>(backend.allocate(static_cast<size_t>(count) * sizeof(T)).value());
}

// A weight of random values, all experts alike but each in its own memory.
char* make_experts(const kernels::Backend& backend, const kernels::LinearShape& shape, int64_t experts, size_t stride) {
  char* weights = take<char>(backend, static_cast<int64_t>(stride) * experts);
  Rng rng(7);
  backend.pack(
      shape,
      [&](int64_t, int64_t count, void* to) {
        auto* values = static_cast<float*>(to);
        for (int64_t i = 0; i < count * shape.in; ++i) values[i] = static_cast<float>(rng.uniform() - 0.5) * 0.1f;
      },
      weights);
  for (int64_t e = 1; e < experts; ++e) std::copy_n(weights, stride, weights + static_cast<size_t>(e) * stride);
  return weights;
}

void run(const kernels::Backend& backend, const Widths& w, DType dtype) {
  const kernels::LinearShape gate_up{.in = w.hidden, .out = 2 * w.expert_width, .dtype = dtype};
  const kernels::LinearShape down{.in = w.expert_width, .out = w.hidden, .dtype = dtype};
  const size_t up_bytes = (backend.packed_bytes(gate_up) + 63) / 64 * 64;
  const size_t down_bytes = (backend.packed_bytes(down) + 63) / 64 * 64;
  const char* up_weights = make_experts(backend, gate_up, w.experts, up_bytes);
  const char* down_weights = make_experts(backend, down, w.experts, down_bytes);
  fmt::print("{}: hidden {}, {} experts of {}, {} per token\n", w.name, w.hidden, w.experts, w.expert_width, w.top_k);

  for (const int64_t n : {1, 16, 64, 512, 4096}) {
    const int64_t pairs = n * w.top_k, rows = pairs + backend.group_padding(w.experts);
    auto* ids = take<int32_t>(backend, pairs);
    auto* starts = take<int32_t>(backend, w.experts);
    auto* counts = take<int32_t>(backend, w.experts);
    auto* places = take<int32_t>(backend, pairs);
    auto* in = take<char>(backend, rows * std::max(w.hidden, w.expert_width) * 4);
    auto* middle = take<float>(backend, rows * 2 * w.expert_width);
    auto* out = take<float>(backend, rows * w.hidden);
    Rng rng(11);
    std::vector<int32_t> order(static_cast<size_t>(w.experts));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = 0; i < n; ++i) {
      std::shuffle(order.begin(), order.end(), rng);
      std::copy_n(order.begin(), w.top_k, ids + i * w.top_k);
    }
    backend.sort_by_expert(
        {}, {.ids = ids, .starts = starts, .counts = counts, .rows = places, .n_pairs = pairs, .experts = w.experts});
    const auto touched = std::count_if(counts, counts + w.experts, [](int32_t count) { return count > 0; });
    auto* activated = take<char>(backend, rows * w.expert_width * 4);
    const auto product = [&](const kernels::LinearShape& shape, const char* weights, size_t stride, const void* from,
                             float* to) {
      return kernels::GroupedLinearArgs{.shape = &shape,
                                        .weights = weights,
                                        .weight_stride = stride,
                                        .in = from,
                                        .starts = starts,
                                        .counts = counts,
                                        .out = to,
                                        .experts = w.experts};
    };
    const double time = seconds([&] {
      backend.gated_grouped_linear({}, {.product = product(gate_up, up_weights, up_bytes, in, middle),
                                        .out = activated,
                                        .out_dtype = dtype,
                                        .rows = places,
                                        .n = pairs});
      backend.grouped_linear({}, product(down, down_weights, down_bytes, activated, out));
    });
    const double bytes = static_cast<double>(up_bytes + down_bytes) * static_cast<double>(touched);
    fmt::print("  {:4} tokens: {:3} experts, {:8.2f} ms, {:6.1f} GB/s, {:7.0f} GFLOP/s\n", n, touched, time * 1e3,
               bytes / time / 1e9, 6e-9 * static_cast<double>(pairs * w.hidden * w.expert_width) / time);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const DType dtype = kernels::best_dtype();
  const auto backend = kernels::make_backend("cpu", threads).value();
  fmt::print("{}\n", bench::to_string(bench::measure_machine(threads), threads));
  // As many experts as fit a small machine; a step touches no more than it does with all of them.
  for (const Widths& widths :
       {Widths{"Qwen3-30B-A3B", 2048, 768, 128, 8}, Widths{"DeepSeek-V2-Lite", 2048, 1408, 64, 6},
        Widths{"MiniMax-M2", 3072, 1536, 64, 8}}) {
    run(*backend, widths, dtype);
  }
}
