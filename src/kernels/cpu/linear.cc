#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/simd.h"

namespace sluice::kernels::cpu {
namespace {

using Memory = dnnl::memory;

// Row counts that primitives are made for: exact up to 16, then multiples of 16, in pieces of at most 256, so that a
// handful of generated kernels serves every batch.
constexpr int64_t kExactRows = 16;
constexpr int64_t kMaxRows = 256;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Output columns of one slab: a multiple of 64, and at most 16 slabs, which is as finely as the pool can divide the
// work.
int64_t slab_width(int64_t out) { return std::max<int64_t>(64, round_up((out + 15) / 16, 64)); }

Memory::data_type type_of(DType dtype) {
  SLUICE_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "matrix products in {}", tensor::to_string(dtype));
  return dtype == DType::kBf16 ? Memory::data_type::bf16 : Memory::data_type::f32;
}

struct Slab {
  int64_t first;
  int64_t width;
  size_t offset;  // into the packed weight
};

struct Layout {
  std::vector<Slab> slabs;
  size_t bytes = 0;
};

struct Product {
  dnnl::matmul primitive;
  Memory::desc in, weight, out, bias, scratch;
};

// Everything that one product depends on.
using ProductKey = std::tuple<int64_t, int64_t, int64_t, int64_t, DType, bool, bool>;

}  // namespace

class Linear::Impl {
 public:
  Impl(int threads, const Simd& simd)
      : simd_(simd), engine_(dnnl::engine::kind::cpu, 0), scratch_(static_cast<size_t>(threads)) {
    for (int i = 0; i < threads; ++i) streams_.emplace_back(engine_);
  }

  bool multiplies(DType dtype) const {
    if (dtype != DType::kF32 && dtype != DType::kBf16) return false;
    try {
      packed(64, 64, dtype);  // a machine without AVX-512 has no bf16 products
    } catch (const dnnl::error&) {
      return false;
    }
    return true;
  }

  // The packed form that oneDNN prefers for [in, width], asked for at a typical row count and used for all.
  Memory::desc packed(int64_t in, int64_t width, DType dtype) const {
    const std::lock_guard lock(mu_);
    auto& desc = packed_[{in, width, dtype}];
    if (!desc) {
      const auto type = type_of(dtype);
      const Memory::desc source({64, in}, type, Memory::format_tag::ab);
      const Memory::desc weight({in, width}, type, Memory::format_tag::any);
      const Memory::desc out({64, width}, Memory::data_type::f32, Memory::format_tag::ab);
      desc = dnnl::matmul::primitive_desc(dnnl::matmul::desc(source, weight, out), engine_).weights_desc();
    }
    return desc;
  }

  Layout layout(const LinearShape& shape) const {
    Layout layout;
    const int64_t width = slab_width(shape.out);
    for (int64_t first = 0; first < shape.out; first += width) {
      const int64_t columns = std::min(width, shape.out - first);
      layout.slabs.push_back({first, columns, layout.bytes});
      layout.bytes += (packed(shape.in, columns, shape.dtype).get_size() + 63) / 64 * 64;
    }
    return layout;
  }

  const Product& product(int64_t rows, int64_t in, int64_t width, int64_t out_stride, DType dtype, bool accumulate,
                         bool bias) const {
    const Memory::desc weight = packed(in, width, dtype);
    const std::lock_guard lock(mu_);
    auto& product = products_[{rows, in, width, out_stride, dtype, accumulate, bias}];
    if (!product) {
      product = std::make_unique<Product>();
      product->in = Memory::desc({rows, in}, type_of(dtype), Memory::format_tag::ab);
      product->weight = weight;
      product->out = Memory::desc({rows, width}, Memory::data_type::f32, Memory::dims{out_stride, 1});
      dnnl::primitive_attr attributes;
      attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
      if (accumulate) {
        dnnl::post_ops sum;
        sum.append_sum(1.0f);
        attributes.set_post_ops(sum);
      }
      if (bias) product->bias = Memory::desc({1, width}, Memory::data_type::f32, Memory::format_tag::ab);
      const auto desc = bias ? dnnl::matmul::desc(product->in, weight, product->bias, product->out)
                             : dnnl::matmul::desc(product->in, weight, product->out);
      const dnnl::matmul::primitive_desc primitive(desc, attributes, engine_);
      product->scratch = primitive.scratchpad_desc();
      product->primitive = dnnl::matmul(primitive);
    }
    return *product;
  }

  void pack(const LinearShape& shape, const RowReader& rows, void* to) const {
    dnnl::stream stream(engine_);
    std::vector<float> wide;
    std::vector<uint16_t> narrow;
    for (const Slab& slab : layout(shape).slabs) {
      const auto count = static_cast<size_t>(slab.width * shape.in);
      wide.resize(count);
      rows(slab.first, slab.width, wide.data());
      void* from = wide.data();
      if (shape.dtype == DType::kBf16) {
        narrow.resize(count);
        simd_.narrow(wide.data(), static_cast<int64_t>(count), narrow.data(), true);
        from = narrow.data();
      }
      // Stored [out, in], so that the columns of W^T lie in its rows.
      const Memory::desc plain({shape.in, slab.width}, type_of(shape.dtype), Memory::format_tag::ba);
      Memory source(plain, engine_, from);
      Memory target(packed(shape.in, slab.width, shape.dtype), engine_, static_cast<char*>(to) + slab.offset);
      dnnl::reorder(source, target).execute(stream, source, target);
      stream.wait();
    }
  }

  void multiply(const LinearArgs& args, ThreadPool& pool) const {
    const LinearShape& shape = *args.shape;
    const int64_t element = shape.dtype == DType::kBf16 ? 2 : 4;
    const Layout& slabs = cached_layout(shape);
    for (int64_t first = 0; first < args.n; first += kMaxRows) {
      const int64_t wanted = std::min(kMaxRows, args.n - first);
      const int64_t rows = Linear::padded_rows(wanted);
      // At most two widths occur, all slabs but the last and the last.
      const Product& wide =
          product(rows, shape.in, slabs.slabs[0].width, shape.out, shape.dtype, args.accumulate, args.bias != nullptr);
      const Product& last = product(rows, shape.in, slabs.slabs.back().width, shape.out, shape.dtype, args.accumulate,
                                    args.bias != nullptr);
      const char* in = static_cast<const char*>(args.in) + first * shape.in * element;
      pool.parallel_for(static_cast<int64_t>(slabs.slabs.size()), [&](int64_t i, int thread) {
        const Slab& slab = slabs.slabs[static_cast<size_t>(i)];
        const Product& chosen = slab.width == slabs.slabs[0].width ? wide : last;
        run(chosen, in, static_cast<const char*>(args.weight) + slab.offset, args.out + first * shape.out + slab.first,
            args.bias == nullptr ? nullptr : args.bias + slab.first, thread);
      });
    }
  }

 private:
  void run(const Product& product, const void* in, const void* weight, float* out, const float* bias,
           int thread) const {
    auto& scratch = scratch_[static_cast<size_t>(thread)];
    if (scratch.size() < product.scratch.get_size()) scratch.resize(product.scratch.get_size());
    std::unordered_map<int, Memory> arguments;
    arguments.emplace(DNNL_ARG_SRC, Memory(product.in, engine_, const_cast<void*>(in)));
    arguments.emplace(DNNL_ARG_WEIGHTS, Memory(product.weight, engine_, const_cast<void*>(weight)));
    arguments.emplace(DNNL_ARG_DST, Memory(product.out, engine_, out));
    if (product.scratch.get_size() > 0) {
      arguments.emplace(DNNL_ARG_SCRATCHPAD, Memory(product.scratch, engine_, scratch.data()));
    }
    if (bias != nullptr) arguments.emplace(DNNL_ARG_BIAS, Memory(product.bias, engine_, const_cast<float*>(bias)));
    product.primitive.execute(streams_[static_cast<size_t>(thread)], arguments);
  }

  const Layout& cached_layout(const LinearShape& shape) const {
    auto& cached = layouts_[{shape.in, shape.out, shape.dtype}];
    if (cached.slabs.empty()) cached = layout(shape);
    return cached;
  }

  const Simd& simd_;
  dnnl::engine engine_;
  mutable std::vector<dnnl::stream> streams_;       // one per thread of the pool
  mutable std::vector<std::vector<char>> scratch_;  // likewise
  mutable std::mutex mu_;
  mutable std::map<std::tuple<int64_t, int64_t, DType>, Memory::desc> packed_;
  mutable std::map<ProductKey, std::unique_ptr<Product>> products_;
  mutable std::map<std::tuple<int64_t, int64_t, DType>, Layout> layouts_;  // the rank's thread only
};

Linear::Linear(int threads, const Simd& simd) : impl_(std::make_unique<Impl>(threads, simd)) {}
Linear::~Linear() = default;

bool Linear::multiplies(DType dtype) const { return impl_->multiplies(dtype); }
int64_t Linear::padded_rows(int64_t n) { return n <= kExactRows ? n : round_up(n, kExactRows); }
size_t Linear::packed_bytes(const LinearShape& shape) const { return impl_->layout(shape).bytes; }
void Linear::pack(const LinearShape& shape, const RowReader& rows, void* to) const { impl_->pack(shape, rows, to); }
void Linear::multiply(const LinearArgs& args, ThreadPool& pool) const {
  if (args.n > 0) impl_->multiply(args, pool);
}

}  // namespace sluice::kernels::cpu
