// Weights that stay quantised: the blocks of a GGUF file with their scales widened to float32, 32 values each. A third
// to a sixth of float32's bytes, which is what decoding waits for, and the values are the same: scale times a small
// whole number is exact, so the one rounding is that of the sum, as in tensor::to_float().
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace sluice::kernels::cpu {

constexpr int64_t kBlockValues = 32;

// Value i is scale * q(i) + offset; q(i) is the low nibble of quants[i] for i < 16, the high one of quants[i - 16]
// after.
struct Q4Block {
  float scale;
  float offset;
  uint8_t quants[16];
};
// Value i is scale * quants[i].
struct Q8Block {
  float scale;
  int8_t quants[32];
};

// True for the types that are kept: Q4_0 and Q4_1 as Q4Block, Q8_0 as Q8Block.
bool keeps_blocks(tensor::DType stored);
size_t kept_block_bytes(tensor::DType stored);
// Converts `count` stored blocks.
void keep_blocks(tensor::DType stored, const void* from, int64_t count, void* to);

}  // namespace sluice::kernels::cpu
