// Products with weights that are packed once: [rows, in] x [in, width], each one single-threaded call by any thread of
// the pool. oneDNN packs; it multiplies too, unless our own loops over its form are faster. Shapes are few, so what it
// generates for them is kept.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

namespace sluice::kernels::cpu {

// How the weight [in, width] of a product lies: as oneDNN packs it, its columns one after another, or its rows.
enum class Form { kPacked, kColumns, kRows };

struct Product {
  int64_t rows = 0;  // that are computed
  int64_t width = 0;
  std::string implementation;  // oneDNN's name for what it chose, or "pairs" for our own loops
  // It writes rows that follow each other, and knows of no sum or bias: the caller brings the result to its place.
  bool staged = false;
  // By our own loops: any of its rows and columns can be multiplied by themselves, to the same bits.
  bool divisible = false;
  virtual ~Product() = default;
};

class PackedProducts {
 public:
  // `threads` of the pool that execute() is called from.
  PackedProducts(int threads, const Simd& simd);
  ~PackedProducts();

  // True if this machine has products in it.
  bool multiplies(DType dtype) const;
  // The packed form of a weight [in, width] in dtype.
  size_t packed_bytes(int64_t in, int64_t width, DType dtype) const;
  void pack(const void* rows, int64_t in, int64_t width, DType dtype, void* to) const;  // from [width, in]
  // If that form is blocks of kPairColumns columns, each with pairs of `in` side by side, column after column: `in`
  // with its padding, to a multiple of at most 32; else 0.
  int64_t pair_rows(int64_t in, int64_t width, DType dtype) const;

  // Row counts that oneDNN is asked for: exact up to kExactRows, then multiples of that, so that a handful of generated
  // kernels serves every batch.
  static constexpr int64_t kExactRows = 16;
  static constexpr int64_t padded_rows(int64_t n) { return n <= kExactRows ? n : round_up(n, kExactRows); }
  // True if our own loops over pairs of bf16 keep up with oneDNN for any number of rows: they multiply by tiles, or
  // have instructions for such pairs (Simd::native_pairs) where oneDNN has no tiles either.
  bool pairs_are_fastest() const;

  // Whether product() of a packed weight is divisible.
  bool is_divisible(int64_t rows, int64_t in, int64_t width, DType dtype) const;
  // Of `rows` rows; `padded`: buffers have padded_rows() of them, and all may be computed. Results are out_stride
  // floats apart. `accumulate`: out += instead of out =. Valid as long as this.
  const Product& product(int64_t rows, bool padded, int64_t in, int64_t width, int64_t out_stride, DType dtype,
                         bool accumulate, bool bias, Form form = Form::kPacked) const;
  // `bias` [width], null where the product has none. `thread` is the caller's number in the pool.
  void execute(const Product& product, const void* in, const void* weight, float* out, const float* bias,
               int thread) const;
  // Of a divisible product: `columns` columns from `first` on, both whole halves of kPairColumns and not across a block
  // of them, or as many whole blocks. `rows` rows, from those on that `in` and `out` point to; `weight` is the
  // product's, `out` and `bias` are those of column `first`.
  void execute_part(const Product& product, const void* in, const void* weight, float* out, const float* bias,
                    int64_t rows, int64_t first, int64_t columns) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::kernels::cpu
