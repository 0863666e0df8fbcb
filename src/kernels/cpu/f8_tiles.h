// Weights in FP8 for products in bf16: tiles of kF8Columns columns, their values in the order of oneDNN's packed form
// and rows filled with zeros to a multiple of kF8Pad; then their scales, [scales_per_row, kF8Columns].
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

namespace sluice::kernels::cpu {

constexpr int64_t kF8Pad = 32;
constexpr size_t f8_tile_values(int64_t in) { return static_cast<size_t>(round_up(in, kF8Pad) * kF8Columns); }
constexpr size_t f8_tile_bytes(int64_t in) {
  return f8_tile_values(in) + static_cast<size_t>(4 * scales_per_row(in) * kF8Columns);
}
// `shape.in` is even.
void pack_f8_tiles(const LinearShape& shape, const RowReader& rows, char* to);

}  // namespace sluice::kernels::cpu
