#include "kernels/cpu/packed_products.h"

#include <algorithm>
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/simd.h"

namespace sluice::kernels::cpu {
namespace {

using Memory = dnnl::memory;

Memory::data_type type_of(DType dtype) {
  SLUICE_CHECK(dtype == DType::kF32 || dtype == DType::kBf16, "matrix products in {}", tensor::to_string(dtype));
  return dtype == DType::kBf16 ? Memory::data_type::bf16 : Memory::data_type::f32;
}

struct OneDnnProduct final : Product {
  dnnl::matmul primitive;
  Memory::desc in, weight, out, bias, scratch;
};

// Our own, whose weight is blocks of kPairColumns columns.
struct PairsProduct final : Product {
  int64_t in = 0;
  int64_t pair_rows = 0;
  int64_t out_stride = 0;
  bool accumulate = false;
};

// oneDNN's three loops, thousands of times slower than anything else that it has.
bool is_reference(const Product& product) { return product.implementation.starts_with("ref"); }

// Everything that one product depends on.
using ProductKey = std::tuple<int64_t, int64_t, int64_t, int64_t, DType, bool, bool, Form>;

}  // namespace

class PackedProducts::Impl {
 public:
  Impl(int threads, const Simd& simd)
      : simd_(simd), engine_(dnnl::engine::kind::cpu, 0), scratch_(static_cast<size_t>(threads)) {
    for (int i = 0; i < threads; ++i) streams_.emplace_back(engine_);
    pairs_are_fastest_ = simd.has_tiles || (simd.native_pairs && !(multiplies(DType::kBf16) && one_dnn_has_tiles()));
  }

  bool pairs_are_fastest() const { return pairs_are_fastest_; }

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
    return packed_locked(in, width, dtype);
  }

  const Memory::desc& packed_locked(int64_t in, int64_t width, DType dtype) const {
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

  void pack(const void* rows, int64_t in, int64_t width, DType dtype, void* to) const {
    dnnl::stream stream(engine_);
    // The columns of W^T lie in its rows.
    const Memory::desc plain({in, width}, type_of(dtype), Memory::format_tag::ba);
    Memory source(plain, engine_, const_cast<void*>(rows));
    Memory target(packed(in, width, dtype), engine_, to);
    dnnl::reorder(source, target).execute(stream, source, target);
    stream.wait();
  }

  int64_t pair_rows(int64_t in, int64_t width, DType dtype) const {
    const std::lock_guard lock(mu_);
    return pair_rows_locked(in, width, dtype);
  }

  int64_t pair_rows_locked(int64_t in, int64_t width, DType dtype) const {
    if (dtype != DType::kBf16 || width % kPairColumns != 0) return 0;
    const auto& desc = packed_locked(in, width, dtype).data;
    const auto& blocks = desc.format_desc.blocking;
    const auto pairs = [&](int64_t outer) {
      return blocks.inner_nblks == 3 && blocks.inner_idxs[0] == 0 && blocks.inner_blks[0] == outer &&
             blocks.inner_idxs[1] == 1 && blocks.inner_blks[1] == kPairColumns && blocks.inner_idxs[2] == 0 &&
             blocks.inner_blks[2] == 2 && blocks.strides[0] == 2 * outer * kPairColumns &&
             (width == kPairColumns || blocks.strides[1] == desc.padded_dims[0] * kPairColumns) &&
             desc.padded_dims[0] <= round_up(in, 32);
    };
    return desc.format_kind == dnnl_blocked && (pairs(16) || pairs(8)) ? desc.padded_dims[0] : 0;
  }

  // A product of so many rows and columns of pairs by our own loops: what pair_rows() says, else 0.
  int64_t divisible_locked(int64_t rows, int64_t in, int64_t width, DType dtype) const {
    const bool by_pairs = in % 2 == 0 && (pairs_are_fastest_ || rows <= kFewPairRows);
    return by_pairs ? pair_rows_locked(in, width, dtype) : 0;
  }
  bool is_divisible(int64_t rows, int64_t in, int64_t width, DType dtype) const {
    const std::lock_guard lock(mu_);
    return divisible_locked(rows, in, width, dtype) > 0;
  }

  const Product& product(int64_t rows, bool padded, int64_t in, int64_t width, int64_t out_stride, DType dtype,
                         bool accumulate, bool bias, Form form = Form::kPacked) const {
    ProductKey key{rows, in, width, out_stride, dtype, accumulate, bias, form};
    const std::lock_guard lock(mu_);
    if (const auto known = products_.find(key); known != products_.end()) return *known->second;
    const int64_t pair_rows = form == Form::kPacked ? divisible_locked(rows, in, width, dtype) : 0;
    if (pair_rows > 0) {
      auto product = std::make_unique<PairsProduct>();
      product->rows = rows;
      product->width = width;
      product->implementation = "pairs";
      product->divisible = true;
      product->in = in;
      product->pair_rows = pair_rows;
      product->out_stride = out_stride;
      product->accumulate = accumulate;
      return *products_.emplace(key, std::move(product)).first->second;
    }
    if (padded) rows = PackedProducts::padded_rows(rows);
    std::get<0>(key) = rows;
    if (const auto known = products_.find(key); known != products_.end()) return *known->second;
    const auto tag = form == Form::kColumns ? Memory::format_tag::ba : Memory::format_tag::ab;
    const Memory::desc weight =
        form == Form::kPacked ? packed_locked(in, width, dtype) : Memory::desc({in, width}, type_of(dtype), tag);
    const Memory::desc source({rows, in}, type_of(dtype), Memory::format_tag::ab);
    // One row has no distance to a next one, and oneDNN 2.6 is choosy about those.
    auto product = make_product(source, weight, rows == 1 ? width : out_stride, accumulate, bias);
    if (is_reference(*product)) {
      // The kernels for AVX-512 and AMX write rows that follow each other.
      auto staged = make_product(source, weight, width, /*accumulate=*/false, /*bias=*/false);
      staged->staged = true;
      if (!is_reference(*staged)) product = std::move(staged);
    }
    return *products_.emplace(key, std::move(product)).first->second;
  }

  void execute(const Product& product, const void* in, const void* weight, float* out, const float* bias,
               int thread) const {
    if (product.divisible) return execute_part(product, in, weight, out, bias, product.rows, 0, product.width);
    execute_one_dnn(static_cast<const OneDnnProduct&>(product), in, weight, out, bias, thread);
  }

  void execute_part(const Product& divisible, const void* in, const void* weight, float* out, const float* bias,
                    int64_t rows, int64_t first, int64_t columns) const {
    const auto& product = static_cast<const PairsProduct&>(divisible);
    const int64_t block = product.pair_rows * kPairColumns * 2;
    for (int64_t done = 0, width; done < columns; done += width, first += width) {
      width = std::min(columns - done, kPairColumns);
      simd_.multiply_pairs(static_cast<const char*>(weight) + first / kPairColumns * block + first % kPairColumns * 4,
                           product.in, static_cast<const uint16_t*>(in), product.in, rows, width,
                           {.out = out + done,
                            .stride = product.out_stride,
                            .bias = bias == nullptr ? nullptr : bias + done,
                            .accumulate = product.accumulate});
    }
  }

 private:
  bool one_dnn_has_tiles() const {
    const Memory::desc source({64, 64}, Memory::data_type::bf16, Memory::format_tag::ab);
    return make_product(source, packed(64, 64, DType::kBf16), 64, /*accumulate=*/false, /*bias=*/false)
               ->implementation.find("amx") != std::string::npos;
  }

  void execute_one_dnn(const OneDnnProduct& product, const void* in, const void* weight, float* out, const float* bias,
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

  std::unique_ptr<OneDnnProduct> make_product(const Memory::desc& source, const Memory::desc& weight,
                                              int64_t out_stride, bool accumulate, bool bias) const {
    const int64_t rows = source.dims()[0];
    const int64_t width = weight.dims()[1];
    auto product = std::make_unique<OneDnnProduct>();
    product->rows = rows;
    product->width = width;
    product->in = source;
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
    product->implementation = primitive.impl_info_str();
    product->primitive = dnnl::matmul(primitive);
    return product;
  }

  const Simd& simd_;
  dnnl::engine engine_;
  bool pairs_are_fastest_ = false;
  mutable std::vector<std::vector<char>> scratch_;  // per thread of the pool
  mutable std::vector<dnnl::stream> streams_;       // likewise
  mutable std::mutex mu_;
  mutable std::map<std::tuple<int64_t, int64_t, DType>, Memory::desc> packed_;
  mutable std::map<ProductKey, std::unique_ptr<Product>> products_;
};

PackedProducts::PackedProducts(int threads, const Simd& simd) : impl_(std::make_unique<Impl>(threads, simd)) {}
PackedProducts::~PackedProducts() = default;

bool PackedProducts::pairs_are_fastest() const { return impl_->pairs_are_fastest(); }
bool PackedProducts::multiplies(DType dtype) const { return impl_->multiplies(dtype); }
size_t PackedProducts::packed_bytes(int64_t in, int64_t width, DType dtype) const {
  return impl_->packed(in, width, dtype).get_size();
}
void PackedProducts::pack(const void* rows, int64_t in, int64_t width, DType dtype, void* to) const {
  impl_->pack(rows, in, width, dtype, to);
}
int64_t PackedProducts::pair_rows(int64_t in, int64_t width, DType dtype) const {
  return impl_->pair_rows(in, width, dtype);
}
const Product& PackedProducts::product(int64_t rows, bool padded, int64_t in, int64_t width, int64_t out_stride,
                                       DType dtype, bool accumulate, bool bias, Form form) const {
  return impl_->product(rows, padded, in, width, out_stride, dtype, accumulate, bias, form);
}
bool PackedProducts::is_divisible(int64_t rows, int64_t in, int64_t width, DType dtype) const {
  return impl_->is_divisible(rows, in, width, dtype);
}
void PackedProducts::execute(const Product& product, const void* in, const void* weight, float* out, const float* bias,
                             int thread) const {
  impl_->execute(product, in, weight, out, bias, thread);
}
void PackedProducts::execute_part(const Product& product, const void* in, const void* weight, float* out,
                                  const float* bias, int64_t rows, int64_t first, int64_t columns) const {
  SLUICE_CHECK(product.divisible, "a part of a product by {}", product.implementation);
  impl_->execute_part(product, in, weight, out, bias, rows, first, columns);
}

}  // namespace sluice::kernels::cpu
