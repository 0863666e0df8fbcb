// Attention by matrix products: scores of many query rows against a block of positions, running softmax, weighted sums.
// What is common to kernels that differ in where keys and values come from.
#pragma once

#include <cstdint>
#include <vector>

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
};
// Keys [padded, dim] and values [padded, value] of dtype, of positions base .. base + count; zeros behind.
struct PositionBlock {
  const char* keys;
  const char* values;
  int64_t base;
  int64_t count;
  int64_t padded;  // a multiple of kPositionStep
};

// Products of one call, by one thread of the pool.
class BlockAttention {
 public:
  struct Scratch {
    std::vector<float> scores;
    std::vector<char> weights;
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

  // Blocks follow each other from position 0 on.
  static void begin(const QueryRows& rows);
  void add(const QueryRows& rows, const PositionBlock& block) const;
  // Row `row` of `rows` to `out`, [value] of dtype.
  void finish(const QueryRows& rows, int64_t row, void* out) const;

 private:
  const Simd& simd_;
  const PlainProducts& products_;
  Scratch& scratch_;
  DType dtype_;
  int64_t dim_, value_;
  float scale_;
  int thread_;
};

}  // namespace sluice::kernels::cpu
