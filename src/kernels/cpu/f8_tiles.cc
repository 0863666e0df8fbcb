#include "kernels/cpu/f8_tiles.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace sluice::kernels::cpu {

void pack_f8_tiles(const LinearShape& shape, const RowReader& rows, char* to) {
  const int64_t scales = scales_per_row(shape.in);
  const auto row_bytes = static_cast<int64_t>(scaled_row_bytes(shape.in));
  std::vector<char> tile(static_cast<size_t>(kF8Columns * row_bytes));
  for (int64_t first = 0; first < shape.out; first += kF8Columns, to += f8_tile_bytes(shape.in)) {
    const int64_t columns = std::min(kF8Columns, shape.out - first);
    rows(first, columns, tile.data());
    std::memset(to, 0, f8_tile_bytes(shape.in));
    char* scales_to = to + f8_tile_values(shape.in);
    for (int64_t i = 0; i < scales; ++i) {
      for (int64_t c = 0; c < columns; ++c) {
        std::memcpy(scales_to + 4 * (i * kF8Columns + c), tile.data() + c * row_bytes + 4 * i, 4);
      }
    }
    // Pairs column by column, so that what is written follows itself.
    const char* values = tile.data() + 4 * scales;
    for (int64_t k = 0; k < shape.in; k += 2) {
      for (int64_t c = 0; c < columns; ++c) std::memcpy(to + k * kF8Columns + 2 * c, values + c * row_bytes + k, 2);
    }
  }
}

}  // namespace sluice::kernels::cpu
