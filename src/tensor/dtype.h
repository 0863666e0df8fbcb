// Element types of stored tensors, plain and block-quantised, and their conversion to float32.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace sluice::tensor {

enum class DType : uint8_t { kF32, kF16, kBf16, kI32, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ6_K, kF8E4M3 };

std::string_view to_string(DType dtype);

// Quantised types store runs of block_elements() values in block_bytes() bytes; plain ones have blocks of one.
size_t block_elements(DType dtype);
size_t block_bytes(DType dtype);
// `elements` is a multiple of block_elements().
inline size_t bytes_of(DType dtype, size_t elements) { return elements / block_elements(dtype) * block_bytes(dtype); }

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float f16_to_float(uint16_t bits);
// E4M3 (Micikevicius et al. 2022): no infinities, largest value 448, NaN where all bits but the sign are set.
float f8_e4m3_to_float(uint8_t bits);
// To the nearest, of two as near to the even one, at most 448 in size; NaN becomes one.
uint8_t float_to_f8_e4m3(float value);

// Widens `elements` stored values (a multiple of the block) to float32. Any alignment of `from`. kI32 is not a weight
// type and is refused by the readers before it gets here.
void to_float(DType dtype, const void* from, size_t elements, float* to);

}  // namespace sluice::tensor
