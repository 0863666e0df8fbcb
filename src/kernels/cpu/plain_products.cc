#include "kernels/cpu/plain_products.h"

#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "base/check.h"

namespace sluice::kernels::cpu {

using Memory = dnnl::memory;

class PlainProducts::Impl {
 public:
  explicit Impl(int threads) : engine_(dnnl::engine::kind::cpu, 0), scratch_(static_cast<size_t>(threads)) {
    for (int i = 0; i < threads; ++i) streams_.emplace_back(engine_);
  }

  struct Product {
    dnnl::matmul primitive;
    Memory::desc a, b, c, scratch;
    std::string implementation;
  };

  const Product& product(const PlainShape& shape) const {
    const std::lock_guard lock(mu_);
    if (const auto known = products_.find(shape); known != products_.end()) return *known->second;
    SLUICE_CHECK(shape.dtype == DType::kF32 || shape.dtype == DType::kBf16, "products in {}",
                 tensor::to_string(shape.dtype));
    const auto type = shape.dtype == DType::kBf16 ? Memory::data_type::bf16 : Memory::data_type::f32;
    auto product = std::make_unique<Product>();
    product->a = Memory::desc({shape.m, shape.k}, type, Memory::format_tag::ab);
    product->b =
        Memory::desc({shape.k, shape.n}, type, shape.b_transposed ? Memory::format_tag::ba : Memory::format_tag::ab);
    product->c = Memory::desc({shape.m, shape.n}, Memory::data_type::f32, Memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (shape.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc primitive(dnnl::matmul::desc(product->a, product->b, product->c), attributes,
                                                 engine_);
    product->scratch = primitive.scratchpad_desc();
    product->implementation = primitive.impl_info_str();
    product->primitive = dnnl::matmul(primitive);
    return *products_.emplace(shape, std::move(product)).first->second;
  }

  void multiply(const PlainShape& shape, const void* a, const void* b, float* c, int thread) const {
    const Product& chosen = product(shape);
    auto& scratch = scratch_[static_cast<size_t>(thread)];
    if (scratch.size() < chosen.scratch.get_size()) scratch.resize(chosen.scratch.get_size());
    std::unordered_map<int, Memory> arguments;
    arguments.emplace(DNNL_ARG_SRC, Memory(chosen.a, engine_, const_cast<void*>(a)));
    arguments.emplace(DNNL_ARG_WEIGHTS, Memory(chosen.b, engine_, const_cast<void*>(b)));
    arguments.emplace(DNNL_ARG_DST, Memory(chosen.c, engine_, c));
    arguments.emplace(DNNL_ARG_SCRATCHPAD, Memory(chosen.scratch, engine_, scratch.data()));
    chosen.primitive.execute(streams_[static_cast<size_t>(thread)], arguments);
  }

 private:
  dnnl::engine engine_;
  mutable std::vector<std::vector<char>> scratch_;  // per thread of the pool
  mutable std::vector<dnnl::stream> streams_;       // likewise
  mutable std::mutex mu_;
  mutable std::map<PlainShape, std::unique_ptr<Product>> products_;
};

PlainProducts::PlainProducts(int threads) : impl_(std::make_unique<Impl>(threads)) {}
PlainProducts::~PlainProducts() = default;

void PlainProducts::multiply(const PlainShape& shape, const void* a, const void* b, float* c, int thread) const {
  impl_->multiply(shape, a, b, c, thread);
}
void PlainProducts::prepare(const PlainShape& shape) const { impl_->product(shape); }
std::string PlainProducts::implementation(const PlainShape& shape) const {
  return impl_->product(shape).implementation;
}

}  // namespace sluice::kernels::cpu
