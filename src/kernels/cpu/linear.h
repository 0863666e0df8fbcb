// Matrix products of the CPU with weights that are packed once or kept as they are stored, by oneDNN or by our own
// loops, whichever is faster for the weight's form, the machine and the rows. Packed weights are slabs of output
// columns: each slab is multiplied by one of our threads for some rows at a time, so that the pool divides the work and
// results do not depend on its size.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::kernels::cpu {

struct Product;  // packed_products.h

class Linear {
 public:
  // `threads` of the pool that multiply() will be called with.
  Linear(int threads, const Simd& simd);
  ~Linear();

  bool multiplies(DType dtype) const;
  bool pairs_are_fastest() const;  // see PackedProducts
  bool keeps(const LinearShape& shape) const;
  bool fuses_gates(const LinearShape& shape) const;
  // What multiplies `rows` rows: oneDNN's name of its implementation, or for our own loops "blocks", over weights as
  // they are stored, and "pairs", over packed ones. "ref..." is thousands of times slower than the others and must not
  // happen.
  std::string implementation(const LinearShape& shape, int64_t rows, bool accumulate, bool bias) const;
  static int64_t padded_rows(int64_t n);
  static int64_t group_padding(int64_t groups);
  size_t packed_bytes(const LinearShape& shape) const;
  void pack(const LinearShape& shape, const RowReader& rows, void* to) const;
  void multiply(const LinearArgs& args, ThreadPool& pool) const;
  // False, and nothing is done, where products and what comes of them are faster apart.
  bool multiply_gated(const GatedLinearArgs& args, ThreadPool& pool) const;
  void multiply_groups(const GroupedLinearArgs& args, ThreadPool& pool) const;
  bool multiply_gated_groups(const GatedGroupedLinearArgs& args, ThreadPool& pool) const;  // likewise
  void multiply_heads(const HeadLinearArgs& args, ThreadPool& pool) const;
  // A product of `rows` rows with a whole weight: out [rows, shape.out] = in W^T. To be asked for before the pool runs,
  // since it may have to be made, and an error of oneDNN cannot leave a task. Valid as long as this.
  const Product& whole_product(const LinearShape& shape, int64_t rows) const;
  // By thread `thread` of the pool alone. `in` and `out` have padded_rows().
  void multiply_whole(const Product& product, const void* weight, const void* in, float* out, int thread) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::kernels::cpu
