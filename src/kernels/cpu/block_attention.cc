#include "kernels/cpu/block_attention.h"

#include <algorithm>

#include "kernels/cpu/memory.h"

namespace sluice::kernels::cpu {

void BlockAttention::begin(const QueryRows& rows) {
  for (int64_t i = 0; i < rows.padded; ++i) {
    rows.state[2 * i] = -1e30f;
    rows.state[2 * i + 1] = 0;
  }
}

int64_t BlockAttention::visible(const QueryRows& rows, int64_t row, const PositionBlock& block) {
  return std::clamp<int64_t>(rows.first_position + row / rows.group + 1 - block.base, 0, block.count);
}

int64_t BlockAttention::unseen(const QueryRows& rows, int64_t base) {
  return std::max<int64_t>(0, base - rows.first_position) * rows.group;
}
PlainShape BlockAttention::scores_shape(int64_t m, int64_t padded) const {
  return {.m = m, .k = dim_, .n = padded, .dtype = dtype_, .b_transposed = true};
}
PlainShape BlockAttention::sums_shape(int64_t m, int64_t padded, int64_t base) const {
  return {.m = m, .k = padded, .n = value_, .dtype = dtype_, .accumulate = base > 0};
}

void BlockAttention::prepare(const QueryRows& rows, int64_t positions, int64_t end) const {
  for (int64_t base = 0; base < end; base += positions) {
    // Whole blocks that all rows see are alike from the second one on.
    if (base > positions && base <= rows.first_position && base + positions <= end) continue;
    const int64_t m = rows.padded - unseen(rows, base) / kRowStep * kRowStep;
    const int64_t padded = round_up(std::min(positions, end - base), kPositionStep);
    products_.prepare(scores_shape(m, padded));
    products_.prepare(sums_shape(m, padded, base));
  }
}

// Causal: rows of earlier positions see nothing of a block and are left out.
void BlockAttention::add(const QueryRows& rows, const PositionBlock& block) const {
  const bool bf16 = dtype_ == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4;
  const int64_t hidden = unseen(rows, block.base);
  const int64_t first = block.packed ? hidden : hidden / kRowStep * kRowStep;
  const int64_t end = block.packed ? rows.rows : rows.padded, m = end - first;
  auto* scores = reinterpret_cast<float*>(at_least_bytes(scratch_.scores, m * block.padded * 4));
  char* weights = at_least_bytes(scratch_.weights, m * block.padded * element);
  if (block.packed) {
    score_packed(rows, block, first, scores);
  } else {
    products_.multiply(scores_shape(m, block.padded), rows.queries + first * dim_ * element, block.keys, scores,
                       thread_);
  }
  for (int64_t r = first; r < end; ++r) {
    const int64_t at = (r - first) * block.padded;
    const float correction = simd_.softmax_step(scores + at, visible(rows, r, block), block.padded, scale_,
                                                rows.state + 2 * r, weights + at * element, bf16);
    if (block.base > rows.begin && correction != 1) simd_.scale(rows.sums + r * value_, value_, correction);
  }
  if (block.packed) {
    sum_packed(rows, block, first, weights);
  } else {
    products_.multiply(sums_shape(m, block.padded, block.base), weights, block.values, rows.sums + first * value_,
                       thread_);
  }
}

void BlockAttention::score_packed(const QueryRows& rows, const PositionBlock& block, int64_t first,
                                  float* scores) const {
  for (int64_t p = 0; p < block.padded; p += kPairColumns) {
    const int64_t from = std::max(first, (block.base + p - rows.first_position) * rows.group);
    if (from >= rows.rows) return;
    simd_.multiply_pairs(block.keys + p * dim_ * 2, dim_, reinterpret_cast<const uint16_t*>(rows.queries) + from * dim_,
                         dim_, rows.rows - from, kPairColumns,
                         {.out = scores + (from - first) * block.padded + p,
                          .stride = block.padded,
                          .bias = nullptr,
                          .accumulate = false});
  }
}

void BlockAttention::sum_packed(const QueryRows& rows, const PositionBlock& block, int64_t first,
                                const char* weights) const {
  // Few enough to see much the same positions; with tiles whole groups, which take a tenth less time a row.
  const int64_t together = simd_.has_tiles ? 64 : 48;
  for (int64_t row = first; row < rows.rows; row += together) {
    const int64_t own = std::min(together, rows.rows - row);
    const int64_t seen = round_up(visible(rows, row + own - 1, block), simd_.pair_step);
    for (int64_t v = 0; v < value_; v += kPairColumns) {
      simd_.multiply_pairs(block.values + v * block.padded * 2, seen,
                           reinterpret_cast<const uint16_t*>(weights) + (row - first) * block.padded, block.padded, own,
                           kPairColumns,
                           {.out = rows.sums + row * value_ + v,
                            .stride = value_,
                            .bias = nullptr,
                            .accumulate = block.base > rows.begin});
    }
  }
}

void BlockAttention::finish(const QueryRows& rows, int64_t row, void* out) const {
  float* sum = rows.sums + row * value_;
  simd_.scale(sum, value_, 1 / rows.state[2 * row + 1]);
  simd_.narrow(sum, value_, out, dtype_ == DType::kBf16);
}

void BlockAttention::leave(const QueryRows& rows, int64_t row, float* partial) const {
  const float* state = rows.state + 2 * row;
  if (state[1] == 0) {  // it saw none of the positions, so that nothing was summed
    std::fill_n(partial, value_, 0.0f);
  } else {
    std::copy_n(rows.sums + row * value_, value_, partial);
  }
  std::copy_n(state, 2, partial + value_);
}

}  // namespace sluice::kernels::cpu
