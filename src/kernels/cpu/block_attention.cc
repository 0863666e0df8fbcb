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

void BlockAttention::add(const QueryRows& rows, const PositionBlock& block) const {
  const bool bf16 = dtype_ == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4;
  // Causal: rows of earlier positions see nothing of this block and are left out.
  const int64_t first = std::max<int64_t>(0, block.base - rows.first_position) * rows.group / kRowStep * kRowStep;
  const int64_t m = rows.padded - first;
  float* scores = at_least(scratch_.scores, m * block.padded);
  char* weights = at_least(scratch_.weights, m * block.padded * element);
  products_.multiply({.m = m, .k = dim_, .n = block.padded, .dtype = dtype_, .b_transposed = true},
                     rows.queries + first * dim_ * element, block.keys, scores, thread_);
  for (int64_t r = first; r < rows.padded; ++r) {
    const int64_t visible = std::clamp<int64_t>(rows.first_position + r / rows.group + 1 - block.base, 0, block.count);
    const int64_t at = (r - first) * block.padded;
    const float correction = simd_.softmax_step(scores + at, visible, block.padded, scale_, rows.state + 2 * r,
                                                weights + at * element, bf16);
    if (block.base > 0 && correction != 1) simd_.scale(rows.sums + r * value_, value_, correction);
  }
  products_.multiply({.m = m, .k = block.padded, .n = value_, .dtype = dtype_, .accumulate = block.base > 0}, weights,
                     block.values, rows.sums + first * value_, thread_);
}

void BlockAttention::finish(const QueryRows& rows, int64_t row, void* out) const {
  float* sum = rows.sums + row * value_;
  simd_.scale(sum, value_, 1 / rows.state[2 * row + 1]);
  simd_.narrow(sum, value_, out, dtype_ == DType::kBf16);
}

}  // namespace sluice::kernels::cpu
