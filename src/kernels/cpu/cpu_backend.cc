#include "kernels/cpu/cpu_backend.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "kernels/cpu/expanded_attention.h"
#include "kernels/cpu/grouped_attention.h"
#include "kernels/cpu/latent_attention.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/thread_pool.h"

namespace sluice::kernels {
namespace {

class CpuStream final : public Stream {};

int64_t element_bytes(DType dtype) { return dtype == DType::kBf16 ? 2 : 4; }

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads)
      : simd_(cpu::choose_simd()),
        pool_(threads),
        linear_(threads, simd_),
        grouped_attention_(threads, simd_, linear_.pairs_are_fastest()),
        latent_attention_(threads, simd_),
        expanded_attention_(threads, simd_, linear_),
        scratch_(static_cast<size_t>(threads)) {}

  std::string_view name() const override { return "cpu"; }
  std::unique_ptr<Stream> make_stream() const override { return std::make_unique<CpuStream>(); }

  Result<void*> allocate(size_t bytes) const override {
    // Mapped, so that large buffers are zero and take memory only as they are touched.
    void* memory = ::mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      return Error{ErrorCode::kExhausted, fmt::format("no memory for {} bytes: {}", bytes, std::strerror(errno))};
    }
    return memory;
  }
  void release(void* memory, size_t bytes) const override { ::munmap(memory, std::max<size_t>(bytes, 1)); }
  bool host_visible() const override { return true; }
  void copy_to_device(const Context&, void* to, const void* from, size_t bytes) const override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void copy_to_host(const Context&, void* to, const void* from, size_t bytes) const override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void copy(const Context&, void* to, const void* from, size_t bytes) const override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void clear(const Context&, void* at, size_t bytes) const override {
    if (bytes > 0) std::memset(at, 0, bytes);
  }
  void synchronize(const Context&) const override {}

  bool multiplies(DType dtype) const override { return linear_.multiplies(dtype); }
  bool keeps(const LinearShape& shape) const override { return linear_.keeps(shape); }
  bool fuses_gates(const LinearShape& shape) const override { return linear_.fuses_gates(shape); }
  int64_t padded_rows(int64_t n) const override { return cpu::Linear::padded_rows(n); }
  int64_t group_padding(int64_t groups) const override { return cpu::Linear::group_padding(groups); }
  size_t packed_bytes(const LinearShape& shape) const override { return linear_.packed_bytes(shape); }
  void pack(const LinearShape& shape, const RowReader& rows, void* to) const override { linear_.pack(shape, rows, to); }
  void linear(const Context&, const LinearArgs& args) const override { linear_.multiply(args, pool_); }

  void gated_linear(const Context& context, const GatedLinearArgs& args) const override {
    if (linear_.multiply_gated(args, pool_)) return;
    linear(context, args.product);
    silu_mul(context, {.gate_up = args.product.out,
                       .out = args.out,
                       .out_dtype = args.out_dtype,
                       .n = args.product.n,
                       .width = args.product.shape->out / 2});
  }

  void head_linear(const Context&, const HeadLinearArgs& args) const override { linear_.multiply_heads(args, pool_); }

  void embed(const Context&, const EmbedArgs& args) const override {
    const bool blocks = tensor::block_elements(args.dtype) > 1;
    const auto row_bytes = static_cast<int64_t>(tensor::bytes_of(args.dtype, static_cast<size_t>(args.width)));
    for (int64_t i = 0; i < args.n; ++i) {
      const int64_t row = args.ids[i] - args.first;
      float* out = args.out + i * args.width;
      if (row < 0 || row >= args.rows) {
        std::fill_n(out, args.width, 0.0f);
        continue;
      }
      const char* from = static_cast<const char*>(args.table) + row * row_bytes;
      if (blocks) {
        tensor::to_float(args.dtype, from, static_cast<size_t>(args.width), out);
      } else {
        simd_.widen(from, args.dtype == DType::kBf16, args.width, out);
      }
    }
  }

  void rms_norm(const Context&, const RmsNormArgs& args) const override {
    const int64_t out_bytes = element_bytes(args.out_dtype);
    if (args.square_sums != nullptr) return rms_norm_part(args);
    each_row(args.n, [&](int64_t i) {
      for (int64_t g = 0; g < args.groups; ++g) {
        simd_.rms_norm(args.in + i * args.in_stride + g * args.width, args.weight, args.epsilon, args.width,
                       static_cast<char*>(args.out) + (i * args.out_stride + g * args.width) * out_bytes,
                       args.out_dtype == DType::kBf16);
      }
    });
  }

  void square_sum(const Context&, const SquareSumArgs& args) const override {
    each_row(args.n, [&](int64_t i) {
      const float* row = args.in + i * args.in_stride;
      double sum = 0;
      for (int64_t j = 0; j < args.width; ++j) sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
      args.out[i] = static_cast<float>(sum);
    });
  }

  void rope_angles(const Context&, const RopeAnglesArgs& args) const override {
    each_row(args.n, [&](int64_t i) {
      float* cosines = args.cos_sin + i * 2 * args.half;
      for (int64_t j = 0; j < args.half; ++j) {
        // In double: at long positions the angle has more digits than a float.
        const double angle = static_cast<double>(args.positions[i]) * static_cast<double>(args.inverse_frequencies[j]);
        cosines[j] = static_cast<float>(std::cos(angle) * static_cast<double>(args.scale));
        cosines[args.half + j] = static_cast<float>(std::sin(angle) * static_cast<double>(args.scale));
      }
    });
  }

  void rope(const Context&, const RopeArgs& args) const override {
    const int64_t step = args.interleaved ? 2 : 1;
    const int64_t apart = args.interleaved ? 1 : args.half;
    each_row(args.n, [&](int64_t i) {
      const float* cosines = args.cos_sin + i * 2 * args.half;
      const float* sines = cosines + args.half;
      for (int64_t h = 0; h < args.n_heads; ++h) {
        float* head = args.heads + i * args.stride + h * args.head_dim;
        for (int64_t j = 0; j < args.half; ++j) {
          float& a = head[j * step];
          float& b = head[j * step + apart];
          const float x = a;
          const float y = b;
          a = x * cosines[j] - y * sines[j];
          b = y * cosines[j] + x * sines[j];
        }
      }
    });
  }

  void store_kv(const Context&, const StoreKvArgs& args) const override {
    each_row(args.n, [&](int64_t i) {
      const int64_t at = args.slots[i] * args.row.bytes();
      simd_.write_kv(args.k + i * args.stride, args.row, static_cast<char*>(args.k_cache) + at);
      if (args.v == nullptr) return;
      simd_.write_kv(args.v + i * args.stride, args.row, static_cast<char*>(args.v_cache) + at);
    });
  }

  void attention(const Context&, const AttentionArgs& args) const override { grouped_attention_.run(args, pool_); }

  void latent_attention(const Context&, const LatentAttentionArgs& args) const override {
    latent_attention_.run(args, pool_);
  }

  void expanded_attention(const Context&, const ExpandedAttentionArgs& args) const override {
    expanded_attention_.run(args, pool_);
  }

  void silu_mul(const Context&, const SiluMulArgs& args) const override {
    const int64_t out_bytes = element_bytes(args.out_dtype);
    each_row(args.n, [&](int64_t i) {
      const int64_t row = args.rows == nullptr ? i : args.rows[i];
      if (row < 0) return;
      const float* gate = args.gate_up + row * 2 * args.width;
      simd_.silu_mul(gate, gate + args.width, args.width, static_cast<char*>(args.out) + row * args.width * out_bytes,
                     args.out_dtype == DType::kBf16);
    });
  }

  void gather_rows(const Context&, const GatherRowsArgs& args) const override {
    for (int64_t i = 0; i < args.n; ++i) {
      std::memcpy(args.out + i * args.width, args.in + args.rows[i] * args.width,
                  static_cast<size_t>(args.width) * sizeof(float));
    }
  }

  void route(const Context&, const RouteArgs& args) const override { cpu::route(args, pool_, scratch_); }
  void choose_copies(const Context&, const ChooseCopiesArgs& args) const override { cpu::choose_copies(args, pool_); }
  void sort_by_expert(const Context&, const SortByExpertArgs& args) const override {
    cpu::sort_by_expert(args, &cpu::Linear::padded_rows);
  }
  void scatter_rows(const Context&, const ScatterRowsArgs& args) const override { cpu::scatter_rows(args, pool_); }
  void pack_rows(const Context&, const PackRowsArgs& args) const override { cpu::pack_rows(args, simd_, pool_); }
  void unpack_rows(const Context&, const UnpackRowsArgs& args) const override { cpu::unpack_rows(args, simd_, pool_); }
  void gated_grouped_linear(const Context& context, const GatedGroupedLinearArgs& args) const override {
    if (linear_.multiply_gated_groups(args, pool_)) return;
    grouped_linear(context, args.product);
    silu_mul(context, {.gate_up = args.product.out,
                       .out = args.out,
                       .out_dtype = args.out_dtype,
                       .n = args.n,
                       .width = args.product.shape->out / 2,
                       .rows = args.rows});
  }
  void grouped_linear(const Context&, const GroupedLinearArgs& args) const override {
    linear_.multiply_groups(args, pool_);
  }
  void combine_rows(const Context&, const CombineRowsArgs& args) const override {
    cpu::combine_rows(args, simd_, pool_);
  }

  // A task is one head of one sequence, token by token: the state, which fits the second cache, is the work.
  void lightning_attention(const Context&, const LightningAttentionArgs& args) const override {
    const int64_t dim = args.head_dim, heads = args.n_heads;
    pool_.parallel_for(args.n_seqs * heads, [&](int64_t task, int thread) {
      const int64_t s = task / heads, h = task % heads;
      auto& scratch = scratch_[static_cast<size_t>(thread)];
      if (std::ssize(scratch) < dim) scratch.resize(static_cast<size_t>(dim));
      float* state = args.states + (args.table_rows[s] * heads + h) * dim * dim;
      const int64_t begin = args.query_start[s], end = args.query_start[s + 1];
      if (args.seq_lens[s] == end - begin) std::fill_n(state, dim * dim, 0.0f);
      const float decay = std::exp(-args.rates[h]);
      for (int64_t row = begin; row < end; ++row) {
        simd_.lightning_step(args.qkv + (row * heads + h) * 3 * dim, decay, dim, state,
                             args.out + (row * heads + h) * dim, scratch.data());
      }
    });
  }

  void sigmoid_mul(const Context&, const SigmoidMulArgs& args) const override {
    const int64_t out_bytes = element_bytes(args.out_dtype);
    each_row(args.n, [&](int64_t i) {
      simd_.sigmoid_mul(args.gate + i * args.width, args.in + i * args.width, args.width,
                        static_cast<char*>(args.out) + i * args.width * out_bytes, args.out_dtype == DType::kBf16);
    });
  }

  void scale(const Context&, const ScaleArgs& args) const override {
    each_row(args.n, [&](int64_t i) { simd_.scale(args.values + i * args.width, args.width, args.by); });
  }

 private:
  template <class Body>
  void each_row(int64_t n, const Body& body) const {
    cpu::each_row(pool_, n, [&](int64_t i, int) { body(i); });
  }

  // Of rows of which this is a part.
  void rms_norm_part(const RmsNormArgs& args) const {
    each_row(args.n, [&](int64_t i) {
      const float* in = args.in + i * args.in_stride;
      const float factor = 1.0f / std::sqrt(args.square_sums[i] / static_cast<float>(args.whole_width) + args.epsilon);
      for (int64_t j = 0; j < args.width; ++j) {
        const float value = in[j] * factor * args.weight[j];
        const int64_t at = i * args.out_stride + j;
        if (args.out_dtype == DType::kBf16) {
          static_cast<uint16_t*>(args.out)[at] = tensor::float_to_bf16(value);
        } else {
          static_cast<float*>(args.out)[at] = value;
        }
      }
    });
  }

  const cpu::Simd& simd_;
  // Used by the rank's thread alone, which is what makes these safe to change in const functions.
  mutable ThreadPool pool_;
  cpu::Linear linear_;
  mutable cpu::GroupedAttention grouped_attention_;
  mutable cpu::LatentAttention latent_attention_;
  mutable cpu::ExpandedAttention expanded_attention_;
  mutable std::vector<std::vector<float>> scratch_;  // per thread of the pool
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) { return std::make_unique<CpuBackend>(threads); }

}  // namespace sluice::kernels
