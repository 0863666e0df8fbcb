// Weights that stay quantised: the blocks of a GGUF file, re-sorted into tiles of kTileColumns columns of the product
// so that one vector holds four values of each column. A tile is a run of blocks of kBlockValues values of every
// column; types with scales of scales (Q4_K, Q6_K) have a head of those before every kSuperBlocks blocks. Nothing is
// rounded and nothing takes more memory than in the file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace sluice::kernels::cpu {

constexpr int64_t kBlockValues = 32;
constexpr int64_t kTileColumns = 16;
constexpr int64_t kSuperBlocks = 8;

// A row of inputs in eight bits: value i is values[i] * scales[i / kBlockValues]. A scale is NaN where a value of its
// block is not finite. Sums are those of the rounded inputs of a block; `minus` are those of their whole numbers, of
// blocks and of their halves, negative. Rows lie behind each other in each of the arrays.
struct RoundedRow {
  const int8_t* values;
  const float* scales;
  const float* sums;
  const int32_t* minus;
  const int32_t* half_minus;
};

// True for Q4_0, Q4_1, Q8_0, Q4_K and Q6_K, in that order tile formats 0 to 4.
bool keeps_blocks(tensor::DType stored);
int tile_format(tensor::DType stored);
constexpr int kTileFormats = 5;
// Bytes of a tile of `in` values a column, whole blocks of the stored type.
size_t tile_bytes(tensor::DType stored, int64_t in);
// Makes a tile of `columns` stored rows, at most kTileColumns, which follow each other. Further columns are zero.
void pack_tile(tensor::DType stored, int64_t in, const void* rows, int64_t columns, void* tile);

}  // namespace sluice::kernels::cpu
