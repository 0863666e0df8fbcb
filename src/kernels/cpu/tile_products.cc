#include "kernels/cpu/tile_products.h"

#include <algorithm>

#include "base/check.h"

namespace sluice::kernels::cpu {

void RoundedRows::resize(int64_t rows, int64_t width) {
  width_ = width;
  const auto count = static_cast<size_t>(rows * width);
  if (values_.size() >= count) return;
  values_.resize(count);
  scales_.resize(count / kBlockValues);
  sums_.resize(count / kBlockValues);
  minus_.resize(count / kBlockValues);
  half_minus_.resize(2 * count / kBlockValues);
}

void RoundedRows::round(const Simd& simd, const void* in, bool in_bf16, int64_t row) {
  const int64_t at = row * width_, block = at / kBlockValues;
  simd.round_row(in, in_bf16, width_, values_.data() + at, scales_.data() + block, sums_.data() + block,
                 minus_.data() + block, half_minus_.data() + 2 * block);
}

RoundedRow RoundedRows::operator[](int64_t row) const {
  const int64_t at = row * width_, block = at / kBlockValues;
  return {values_.data() + at, scales_.data() + block, sums_.data() + block, minus_.data() + block,
          half_minus_.data() + 2 * block};
}

int64_t tile_count(const LinearShape& shape) { return (shape.out + kTileColumns - 1) / kTileColumns; }

size_t tiles_bytes(const LinearShape& shape) {
  return static_cast<size_t>(tile_count(shape)) * tile_bytes(shape.stored, shape.in);
}

void pack_tiles(const LinearShape& shape, const RowReader& rows, char* to) {
  std::vector<char> stored(static_cast<size_t>(kTileColumns) *
                           tensor::bytes_of(shape.stored, static_cast<size_t>(shape.in)));
  for (int64_t first = 0; first < shape.out; first += kTileColumns, to += tile_bytes(shape.stored, shape.in)) {
    const int64_t columns = std::min(kTileColumns, shape.out - first);
    rows(first, columns, stored.data());
    pack_tile(shape.stored, shape.in, stored.data(), columns, to);
  }
}

void multiply_tiles(const Simd& simd, const LinearArgs& args, int64_t first, int64_t end, const RoundedRows* rounded,
                    int64_t first_row) {
  const LinearShape& shape = *args.shape;
  const TileKernels& kernels = simd.tiles[tile_format(shape.stored)];
  const size_t bytes = tile_bytes(shape.stored, shape.in);
  const int64_t blocks = shape.in / kBlockValues;
  const char* tile = static_cast<const char*>(args.weight) + static_cast<size_t>(first) * bytes;
  for (int64_t t = first; t < end; ++t, tile += bytes) {
    const int64_t column = t * kTileColumns, width = std::min(kTileColumns, shape.out - column);
    if (rounded != nullptr && width == kTileColumns) {
      kernels.dot_rounded(tile, blocks, (*rounded)[first_row], args.n,
                          {.out = args.out + column,
                           .stride = shape.out,
                           .bias = args.bias == nullptr ? nullptr : args.bias + column,
                           .accumulate = args.accumulate});
      continue;
    }
    for (int64_t row = 0; row < args.n; row += kTileRows) {
      const int64_t count = std::min(kTileRows, args.n - row);
      float sums[kTileRows * kTileColumns];
      if (rounded == nullptr) {
        kernels.dot_exact(tile, blocks, static_cast<const float*>(args.in) + row * shape.in, shape.in, count, sums);
      } else {
        kernels.dot_rounded(tile, blocks, (*rounded)[first_row + row], count,
                            {.out = sums, .stride = kTileColumns, .bias = nullptr, .accumulate = false});
      }
      put_columns(args, row, count, column, width, sums, kTileColumns);
    }
  }
}

void put_columns(const LinearArgs& args, int64_t row, int64_t rows, int64_t first, int64_t width, const float* sums,
                 int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, sums += stride) {
    float* out = args.out + (row + r) * args.shape->out + first;
    for (int64_t c = 0; c < width; ++c) {
      out[c] = (args.accumulate ? out[c] : 0) + sums[c] + (args.bias == nullptr ? 0 : args.bias[first + c]);
    }
  }
}

}  // namespace sluice::kernels::cpu
