// Attention by matrix products: scores of many query rows against a block of positions, running softmax, weighted sums.
// What is common to kernels that differ in where keys and values come from.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/plain_products.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

namespace sluice::kernels::cpu {

// Rows and positions of products are filled with zeros to a multiple of these, so that few shapes of products occur.
constexpr int64_t kRowStep = 32;
constexpr int64_t kPositionStep = 64;

// Query rows that share keys and values. Row r stands at position first_position + r / group.
struct QueryRows {
  char* queries = nullptr;  // [padded, dim] of dtype, zero from `rows` on
  float* sums = nullptr;    // [padded, value]
  float* state = nullptr;   // [padded, 2] running maximum and total
  int64_t rows = 0;
  int64_t padded = 0;  // a multiple of kRowStep
  int64_t group = 1;
  int64_t first_position = 0;
  int64_t begin = 0;  // of the positions that are summed over; beyond the first one, for packed blocks alone
};
// Keys [padded, dim] and values [padded, value] of dtype, of positions base .. base + count; zeros behind.
struct PositionBlock {
  const char* keys;
  const char* values;
  int64_t base;
  int64_t count;
  int64_t padded;  // a multiple of kPositionStep
  // By pack_positions(), for our own products: keys over their values, values over positions.
  bool packed = false;
};
// True if blocks should be packed where the machine multiplies best by our own loops (Linear::pairs_are_fastest()).
constexpr bool packs_positions(DType dtype, int64_t dim, int64_t value) {
  return dtype == DType::kBf16 && dim % 32 == 0 && value % kPairColumns == 0;
}
// No rows are asked for ahead.
struct NoneAhead {
  const void* operator()(int64_t) const { return nullptr; }
};
// Rows of bf16, `width` values each, as Simd::pack_pairs does. row_of(c) is row c of them, valid until that of
// c + kPackRows is asked for; either result may be null. next_of(c) is what will be read kPackRows rows later.
template <class RowOf, class NextOf = NoneAhead>
void pack_positions(const Simd& simd, int64_t padded, int64_t width, const RowOf& row_of, char* over_values,
                    char* over_rows, const NextOf& next_of = {}) {
  static_assert(kPositionStep % kPackRows == 0 && kPositionStep == kPairColumns);
  for (int64_t first = 0; first < padded; first += kPackRows) {
    const uint16_t* rows[kPackRows];
    const void* next[kPackRows];
    for (int64_t r = 0; r < kPackRows; ++r) {
      rows[r] = row_of(first + r);
      next[r] = next_of(first + r);
    }
    auto* values = reinterpret_cast<uint16_t*>(over_values);
    auto* pairs = reinterpret_cast<uint16_t*>(over_rows);
    if (values != nullptr) values += first / kPairColumns * kPairColumns * width + first % kPairColumns * 2;
    if (pairs != nullptr) pairs += first * kPairColumns;
    simd.pack_pairs(rows, width, values, pairs, padded * kPairColumns,
                    std::is_same_v<NextOf, NoneAhead> ? nullptr : next);
  }
}

// Products of one call, by one thread of the pool.
class BlockAttention {
 public:
  struct Scratch {
    std::vector<CacheLine> scores;
    std::vector<CacheLine> weights;
  };
  BlockAttention(const Simd& simd, const PlainProducts& products, Scratch& scratch, DType dtype, int64_t dim,
                 int64_t value, float scale, int thread)
      : simd_(simd),
        products_(products),
        scratch_(scratch),
        dtype_(dtype),
        dim_(dim),
        value_(value),
        scale_(scale),
        thread_(thread) {}

  // Makes the products that add() will need for unpacked blocks of `positions` up to position `end`; see
  // PlainProducts. Of `rows` the numbers count.
  void prepare(const QueryRows& rows, int64_t positions, int64_t end) const;
  // Blocks follow each other from rows.begin on.
  static void begin(const QueryRows& rows);
  void add(const QueryRows& rows, const PositionBlock& block) const;
  // Row `row` of `rows` to `out`, [value] of dtype.
  void finish(const QueryRows& rows, int64_t row, void* out) const;
  // The same before it is divided by its total, with its maximum and total behind: [value + 2].
  void leave(const QueryRows& rows, int64_t row, float* partial) const;

 private:
  // Rows of earlier positions see nothing of the block from `base` on.
  static int64_t unseen(const QueryRows& rows, int64_t base);
  PlainShape scores_shape(int64_t m, int64_t padded) const;
  PlainShape sums_shape(int64_t m, int64_t padded, int64_t base) const;
  // Positions of `block` that row `row` sees.
  static int64_t visible(const QueryRows& rows, int64_t row, const PositionBlock& block);
  // Scores and weights are those of the rows from `first` on, block.padded apart.
  void score_packed(const QueryRows& rows, const PositionBlock& block, int64_t first, float* scores) const;
  void sum_packed(const QueryRows& rows, const PositionBlock& block, int64_t first, const char* weights) const;

  const Simd& simd_;
  const PlainProducts& products_;
  Scratch& scratch_;
  DType dtype_;
  int64_t dim_, value_;
  float scale_;
  int thread_;
};

}  // namespace sluice::kernels::cpu
