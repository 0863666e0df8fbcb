// oneDNN, called single-threaded from our own pool, at the shapes of SmolLM2-135M, beside a plain loop.
//
//   onednn_spike [threads]
//
// Prints one line per shape and row count: operations per second, and weights read per second. Every call multiplies by
// another copy of the weight, so that they come from memory as in a model that is larger than the caches. With one
// thread the time is CPU time, which other programs on the machine disturb less.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <dnnl.hpp>
#include <functional>
#include <vector>

#include "base/rng.h"
#include "kernels/thread_pool.h"
#include "tensor/dtype.h"

namespace {

using Memory = dnnl::memory;
using sluice::kernels::ThreadPool;

constexpr size_t kBytesOfWeights = 192 << 20;  // several times the last cache
constexpr int kRepeats = 7;

struct Shape {
  const char* name;
  int64_t in, out;
};
constexpr Shape kShapes[] = {
    {"qkv", 576, 960}, {"output", 576, 576}, {"gate_up", 576, 3072}, {"down", 1536, 576}, {"head", 576, 49152}};

double now(bool cpu) {
  timespec time{};
  ::clock_gettime(cpu ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// The median of kRepeats times, in seconds per call.
double time_of(const ThreadPool& pool, int64_t copies, const std::function<void(int64_t copy)>& call) {
  call(0);
  std::vector<double> times;
  for (int i = 0; i < kRepeats; ++i) {
    const double start = now(pool.size() == 1);
    for (int64_t copy = 0; copy < copies; ++copy) call(copy);
    times.push_back((now(pool.size() == 1) - start) / static_cast<double>(copies));
  }
  std::sort(times.begin(), times.end());
  return times[kRepeats / 2];
}

// What a compiler makes of three loops (for x86-64-v2, as the rest of the tree is built).
void plain_loop(const float* weight, const float* in, float* out, int64_t n, const Shape& shape, ThreadPool& pool) {
  constexpr int64_t kColumns = 64;
  pool.parallel_for((shape.out + kColumns - 1) / kColumns, [&](int64_t block, int) {
    const int64_t end = std::min(shape.out, (block + 1) * kColumns);
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t j = block * kColumns; j < end; ++j) {
        float sums[8] = {};
        for (int64_t k = 0; k < shape.in; k += 8) {
          for (int64_t l = 0; l < 8; ++l) sums[l] += in[row * shape.in + k + l] * weight[j * shape.in + k + l];
        }
        float sum = 0;
        for (const float part : sums) sum += part;
        out[row * shape.out + j] = sum;
      }
    }
  });
}

// A product cut into slabs of output columns, each a call of its own.
class Slabs {
 public:
  Slabs(const Shape& shape, int64_t n, Memory::data_type type, ThreadPool& pool) : pool_(pool), shape_(shape) {
    width_ = std::max<int64_t>(64, ((shape.out + 15) / 16 + 63) / 64 * 64);
    while (shape.out % width_ != 0) width_ -= 64;
    in_ = {{n, shape.in}, type, Memory::format_tag::ab};
    out_ = {{n, width_}, Memory::data_type::f32, Memory::dims{shape.out, 1}};
    const Memory::desc any({shape.in, width_}, type, Memory::format_tag::any);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::matmul::primitive_desc primitive(dnnl::matmul::desc(in_, any, out_), attributes, engine_);
    implementation_ = primitive.impl_info_str();
    weight_ = primitive.weights_desc();
    scratch_desc_ = primitive.scratchpad_desc();
    matmul_ = dnnl::matmul(primitive);
    for (int i = 0; i < pool.size(); ++i) {
      streams_.emplace_back(engine_);
      scratch_.emplace_back(scratch_desc_.get_size());
    }
  }

  const std::string& implementation() const { return implementation_; }
  size_t slab_bytes() const { return weight_.get_size(); }
  int64_t slabs() const { return shape_.out / width_; }

  void multiply(const char* weight, void* in, float* out) {
    pool_.parallel_for(slabs(), [&](int64_t slab, int thread) {
      const auto t = static_cast<size_t>(thread);
      std::unordered_map<int, Memory> arguments = {
          {DNNL_ARG_SRC, Memory(in_, engine_, in)},
          {DNNL_ARG_WEIGHTS,
           Memory(weight_, engine_, const_cast<char*>(weight) + slab_bytes() * static_cast<size_t>(slab))},
          {DNNL_ARG_DST, Memory(out_, engine_, out + slab * width_)},
          {DNNL_ARG_SCRATCHPAD, Memory(scratch_desc_, engine_, scratch_[t].data())}};
      matmul_.execute(streams_[t], arguments);
    });
  }

 private:
  ThreadPool& pool_;
  const Shape shape_;
  int64_t width_ = 0;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  std::vector<dnnl::stream> streams_;
  std::vector<std::vector<char>> scratch_;
  Memory::desc in_, weight_, out_, scratch_desc_;
  dnnl::matmul matmul_;
  std::string implementation_;
};

void report(const char* how, const Shape& shape, int64_t n, double time, size_t weight_bytes, const std::string& note) {
  const double products = 2.0 * static_cast<double>(n * shape.in * shape.out);
  fmt::print("{:<10} {:<8} m {:>4}  {:>9.1f} us  {:>7.1f} GFLOP/s  {:>6.1f} GB/s of weights  {}\n", how, shape.name, n,
             time * 1e6, products / time * 1e-9, static_cast<double>(weight_bytes) / time * 1e-9, note);
  std::fflush(stdout);
}

void measure(const Shape& shape, int64_t n, Memory::data_type type, const std::vector<char>& noise, ThreadPool& pool) {
  const bool bf16 = type == Memory::data_type::bf16;
  std::vector<char> in(noise.begin(), noise.begin() + n * shape.in * 4);
  std::vector<float> out(static_cast<size_t>(n * shape.out));
  try {
    Slabs slabs(shape, n, type, pool);
    const size_t bytes = slabs.slab_bytes() * static_cast<size_t>(slabs.slabs());
    const auto copies = static_cast<int64_t>(std::max<size_t>(1, kBytesOfWeights / bytes));
    const double time = time_of(pool, copies, [&](int64_t copy) {
      slabs.multiply(noise.data() + static_cast<size_t>(copy) * bytes, in.data(), out.data());
    });
    report(bf16 ? "onednn-bf16" : "onednn-f32", shape, n, time, bytes, slabs.implementation());
  } catch (const dnnl::error& error) {
    fmt::print("{:<10} {:<8} m {:>4}  not on this machine: {}\n", bf16 ? "onednn-bf16" : "onednn-f32", shape.name, n,
               error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  ThreadPool pool(argc > 1 ? std::max(1, std::atoi(argv[1])) : 1);
  fmt::print("threads {}\n", pool.size());
  // Small values that are finite as float32 and as bf16 alike: what is multiplied does not matter, denormals would.
  sluice::Rng rng(1);
  std::vector<char> noise(kBytesOfWeights + (16 << 20));
  for (size_t i = 0; i < noise.size(); i += 2) {
    const uint16_t bits = sluice::tensor::float_to_bf16(static_cast<float>(rng.uniform() - 0.5));
    std::copy_n(reinterpret_cast<const char*>(&bits), 2, noise.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (const Shape& shape : kShapes) {
    for (const int64_t n : {1, 4, 16, 128, 512}) {
      measure(shape, n, Memory::data_type::f32, noise, pool);
      measure(shape, n, Memory::data_type::bf16, noise, pool);
      if (n > 16) continue;  // it is clear by then
      const size_t bytes = static_cast<size_t>(shape.in * shape.out) * 4;
      const auto* floats = reinterpret_cast<const float*>(noise.data());
      std::vector<float> out(static_cast<size_t>(n * shape.out));
      const double time = time_of(
          pool, static_cast<int64_t>(std::max<size_t>(1, kBytesOfWeights / bytes)),
          [&](int64_t copy) { plain_loop(floats + copy * shape.in * shape.out, floats, out.data(), n, shape, pool); });
      report("plain-f32", shape, n, time, bytes, "");
    }
  }
  return 0;
}
