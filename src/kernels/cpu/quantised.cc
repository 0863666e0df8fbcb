#include "kernels/cpu/quantised.h"

#include <cstring>

#include "base/check.h"

namespace sluice::kernels::cpu {
namespace {

using tensor::DType;

// Bytes of a tile's block: the values of kTileColumns columns, four of a column side by side, then scales.
constexpr size_t kNibbles = kTileColumns * kBlockValues / 2;
constexpr size_t kBytes = kTileColumns * kBlockValues;
constexpr size_t kHalves = 2 * kTileColumns;  // a half-precision number for each column

struct Format {
  DType stored;
  size_t block;  // bytes of a tile's block
  size_t head;   // bytes before every kSuperBlocks blocks
};
constexpr Format kFormats[kTileFormats] = {
    {DType::kQ4_0, kNibbles + kHalves, 0},
    {DType::kQ4_1, kNibbles + 2 * kHalves, 0},
    {DType::kQ8_0, kBytes + kHalves, 0},
    {DType::kQ4_K, kNibbles + 2 * kTileColumns, 2 * kHalves},
    {DType::kQ6_K, kNibbles + kBytes / 4 + 2 * kTileColumns, kHalves},
};

// A line is four values of each column. Nibbles: line i has values 4i .. 4i + 3 in the low halves of its bytes and
// those 16 further in the high ones, as the blocks of Q4_0 have them. `values` are 0 to 15, of one column.
void put_nibbles(const uint8_t* values, int64_t column, uint8_t* block) {
  for (int64_t k = 0; k < kBlockValues / 2; ++k) {
    block[k / 4 * 4 * kTileColumns + 4 * column + k % 4] = static_cast<uint8_t>(values[k] | values[k + 16] << 4);
  }
}

// Super-blocks of 256 values, sub-block by sub-block.
void pack_q4_k(const uint8_t* from, int64_t column, uint8_t* head, size_t block) {
  std::memcpy(head + 2 * column, from, 2);
  std::memcpy(head + kHalves + 2 * column, from + 2, 2);
  const uint8_t* packed = from + 4;
  const uint8_t* quants = from + 16;
  uint8_t* to = head + 2 * kHalves;
  for (int j = 0; j < kSuperBlocks; ++j, to += block) {
    uint8_t values[kBlockValues];
    for (int i = 0; i < kBlockValues; ++i) {
      const uint8_t pair = quants[j / 2 * 32 + i];
      values[i] = j % 2 == 0 ? pair & 15 : pair >> 4;
    }
    put_nibbles(values, column, to);
    // Six-bit scales and minima, eight of each in twelve bytes.
    const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    const int minimum = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
    to[kNibbles + static_cast<size_t>(column)] = static_cast<uint8_t>(scale);
    to[kNibbles + kTileColumns + static_cast<size_t>(column)] = static_cast<uint8_t>(minimum);
  }
}

void pack_q6_k(const uint8_t* from, int64_t column, uint8_t* head, size_t block) {
  const uint8_t* scales = from + 192;
  std::memcpy(head + 2 * column, from + 208, 2);
  uint8_t* to = head + kHalves;
  for (int j = 0; j < kSuperBlocks; ++j, to += block) {
    const uint8_t* low = from + j / 4 * 64 + j % 2 * 32;
    const uint8_t* high = from + 128 + j / 4 * 32;
    uint8_t values[kBlockValues];
    for (int i = 0; i < kBlockValues; ++i) {
      values[i] = j % 4 < 2 ? low[i] & 15 : low[i] >> 4;
      // The two upper bits of line l = i / 4 lie in line l / 4 of the upper bits, at place l % 4.
      uint8_t& upper = to[kNibbles + static_cast<size_t>(i / 16 * 4 * kTileColumns + 4 * column + i % 4)];
      upper = static_cast<uint8_t>(upper | ((high[i] >> (2 * (j % 4))) & 3) << (2 * (i / 4 % 4)));
    }
    put_nibbles(values, column, to);
    for (int group = 0; group < 2; ++group) {
      to[kNibbles + kBytes / 4 + static_cast<size_t>(group * kTileColumns + column)] = scales[2 * j + group];
    }
  }
}

void pack_plain(DType stored, const uint8_t* from, int64_t column, uint8_t* to) {
  const size_t values = stored == DType::kQ4_1 ? 4 : 2;
  if (stored == DType::kQ8_0) {
    for (int64_t k = 0; k < kBlockValues; ++k) {
      to[k / 4 * 4 * kTileColumns + 4 * column + k % 4] = from[values + static_cast<size_t>(k)] ^ 0x80;  // plus 128
    }
    std::memcpy(to + kBytes + 2 * column, from, 2);
    return;
  }
  for (int64_t line = 0; line < 4; ++line) {
    std::memcpy(to + line * 4 * kTileColumns + 4 * column, from + values + 4 * line, 4);
  }
  std::memcpy(to + kNibbles + 2 * column, from, 2);
  if (stored == DType::kQ4_1) std::memcpy(to + kNibbles + kHalves + 2 * column, from + 2, 2);
}

}  // namespace

int tile_format(DType stored) {
  for (int i = 0; i < kTileFormats; ++i) {
    if (kFormats[i].stored == stored) return i;
  }
  return -1;
}

bool keeps_blocks(DType stored) { return tile_format(stored) >= 0; }

size_t tile_bytes(DType stored, int64_t in) {
  const Format& format = kFormats[tile_format(stored)];
  const auto blocks = static_cast<size_t>(in / kBlockValues);
  return blocks * format.block + blocks / kSuperBlocks * format.head;
}

void pack_tile(DType stored, int64_t in, const void* rows, int64_t columns, void* tile) {
  const Format& format = kFormats[tile_format(stored)];
  SLUICE_CHECK(in % static_cast<int64_t>(tensor::block_elements(stored)) == 0, "a row of {} values of {}", in,
               tensor::to_string(stored));
  std::memset(tile, 0, tile_bytes(stored, in));
  const auto* from = static_cast<const uint8_t*>(rows);
  const size_t stored_block = tensor::block_bytes(stored);
  const int64_t stored_blocks = in / static_cast<int64_t>(tensor::block_elements(stored));
  for (int64_t column = 0; column < columns; ++column) {
    auto* to = static_cast<uint8_t*>(tile);
    for (int64_t b = 0; b < stored_blocks; ++b, from += stored_block) {
      if (format.head == 0) {
        pack_plain(stored, from, column, to);
        to += format.block;
        continue;
      }
      (stored == DType::kQ4_K ? pack_q4_k : pack_q6_k)(from, column, to, format.block);
      to += format.head + kSuperBlocks * format.block;
    }
  }
}

}  // namespace sluice::kernels::cpu
