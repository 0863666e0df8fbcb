// The inner loops of the CPU kernels, compiled once per instruction set (simd_avx512vnni.cc and so on) from the same
// text (simd*.inc) and chosen at run time; matrix tiles have products of their own (simd_amx.cc).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/quantised.h"
#include "kernels/kernels.h"

namespace sluice::kernels::cpu {

// Where sums of products go: row r, column c to out[r * stride + c]. `bias`, by column, is added unless it is null, and
// with `accumulate` what was there.
struct Sums {
  float* out;
  int64_t stride;
  const float* bias;
  bool accumulate;
};

// What is done with a tile of one format, `blocks` blocks long.
struct TileKernels {
  // `count` rows that follow each other.
  void (*dot_rounded)(const char* tile, int64_t blocks, const RoundedRow& first, int64_t count, const Sums& to);
  // `rows` of 1 to kTileRows; sums [rows, kTileColumns].
  void (*dot_exact)(const char* tile, int64_t blocks, const float* x, int64_t x_stride, int64_t rows, float* sums);
  // Value (k, column) to out[k * stride + column] in float32, and in bf16, pairs of k side by side, to
  // out[(k / 2 * stride + column) * 2 + k % 2].
  void (*expand_f32)(const char* tile, int64_t blocks, int64_t stride, void* out);
  void (*expand_bf16)(const char* tile, int64_t blocks, int64_t stride, void* out);
};
constexpr int64_t kTileRows = 8;

// Some query rows of one sequence for the heads of some KV heads, `heads` in all, over the positions [begin, end).
// Where that is not all that they see, the result goes to `partial`, [rows, heads, head_dim + 2]: weighted sums,
// maximum and total.
struct AttentionPiece {
  int64_t sequence, first_row, rows, kv_head, kv_heads;
  int64_t begin, end;
  float* partial;  // null: to args.out
};
// One row over rows of bf16, which are multiplied as they are stored, has pieces of any number of KV heads; else it
// is 1.
constexpr bool takes_all_heads(const AttentionArgs& args, int64_t rows) {
  return rows == 1 && args.row.dtype == DType::kBf16 && args.head_dim % 32 == 0;
}

struct Simd {
  const char* name;
  // One row of `width` values each.
  void (*rms_norm)(const float* in, const float* weight, float epsilon, int64_t width, void* out, bool out_bf16);
  void (*silu_mul)(const float* gate, const float* up, int64_t width, void* out, bool out_bf16);
  void (*sigmoid_mul)(const float* gate, const float* in, int64_t width, void* out, bool out_bf16);
  void (*narrow)(const float* in, int64_t width, void* out, bool out_bf16);  // float32 → dtype
  void (*widen)(const void* in, bool in_bf16, int64_t width, float* out);    // dtype → float32
  // A row of the KV cache, and values [first, first + count) of one, whole groups of it, as dtype.
  void (*write_kv)(const float* in, const KvRow& format, void* row);
  void (*read_kv)(const void* row, const KvRow& format, int64_t first, int64_t count, void* out, bool out_bf16);
  // `scratch` has attention_scratch() floats.
  void (*attention)(const AttentionArgs& args, const AttentionPiece& piece, float* scratch);
  // A block of one row of an attention: scores q.k of `count` positions become weights e^(scale score - top), of dtype,
  // zero from `count` to `padded`. Both have room for a multiple of 32. `state` is the running {top, total}. What was
  // summed before is to be multiplied by the result. Weights in float32 may take the place of the scores.
  float (*softmax_step)(float* scores, int64_t count, int64_t padded, float scale, float* state, void* weights,
                        bool bf16);
  // One token of one head of lightning attention (kernels.h): `qkv` [3, dim], `state` [dim, dim]. `scratch` has dim
  // floats.
  void (*lightning_step)(const float* qkv, float decay, int64_t dim, float* state, float* out, float* scratch);
  void (*scale)(float* row, int64_t width, float by);
  void (*add_scaled)(const float* in, int64_t width, float by, float* out, bool accumulate);
  // sums[r] = a row of `in` values of e4m3 with its scales (kernels.h, scaled_row_bytes()) times row r of x; `rows` of
  // 1 to kDotRows, x_stride apart. No value is NaN.
  void (*dot_f8)(const void* row, int64_t in, const float* x, int64_t x_stride, int64_t rows, float* sums);
  void (*expand_f8)(const void* row, int64_t in, void* out, bool out_bf16);
  // The same of kF8Columns rows of the weight at once, where pairs of their values lie side by side: value (column, k)
  // is values[(k / 2 * kF8Columns + column) * 2 + k % 2], its scale scales[k / 128 * kF8Columns + column]. `in` is
  // even; zeros follow to a multiple of 32. Rows of bf16, x_stride apart, any number of them; out as `values`.
  void (*multiply_f8_tile)(const uint8_t* values, const float* scales, int64_t in, const uint16_t* x, int64_t x_stride,
                           int64_t rows, const Sums& to);
  // `count` of those values, a multiple of 32, without their scales, which is exact: out as `values`.
  void (*widen_f8_pairs)(const uint8_t* values, int64_t count, uint16_t* out);
  void (*expand_f8_tile)(const uint8_t* values, const float* scales, int64_t in, uint16_t* out);
  // A row of whole blocks of inputs in eight bits (quantised.h): to the nearest, the largest of a block is 127.
  void (*round_row)(const void* in, bool in_bf16, int64_t width, int8_t* values, float* scales, float* sums,
                    int32_t* minus, int32_t* half_minus);
  const TileKernels* tiles;  // by tile_format()
  // Rows of bf16, x_stride apart, times `columns` columns of a weight in bf16 whose pairs of values lie side by side,
  // as those of multiply_f8_tile: kPairColumns, or half as many of them, the first from `values` on. `in` is even. A
  // sum does not depend on how many rows or columns there are, but with tiles on whether these are kFewPairRows or
  // fewer.
  void (*multiply_pairs)(const char* values, int64_t in, const uint16_t* x, int64_t x_stride, int64_t rows,
                         int64_t columns, const Sums& to);
  // That it has instructions for such pairs, and keeps up with any other product without matrix tiles. Else it is for
  // rows that are so few that memory decides.
  bool native_pairs;
  bool has_tiles;     // that it multiplies by matrix tiles
  int64_t pair_step;  // what `in` should be a multiple of; else the rest takes as long as so many
  int64_t pair_rows;  // how many rows should be multiplied at a time
  // kPackRows rows of bf16, `width` values each, a multiple of 32, as the weights of two products, pairs of the summed
  // dimension side by side. Row r's value k goes, for sums over a row's values, to
  //   over_values[(k / 2 * kPairColumns + r) * 2 + k % 2]
  // and for sums over rows to
  //   over_rows[k / kPairColumns * block + (r / 2 * kPairColumns + k % kPairColumns) * 2 + r % 2].
  // Either may be null. `next`: kPackRows rows that will be wanted next, asked for meanwhile; null = none.
  void (*pack_pairs)(const uint16_t* const* rows, int64_t width, uint16_t* over_values, uint16_t* over_rows,
                     int64_t block, const void* const* next);
  // Scores of kScoreRows rows of bf16, row_bytes apart, by matrix tiles, to which rows go as they lie in memory; null
  // without. scores[c * stride + r] = the sum over `width` values, a multiple of 32, of row r times column c of
  // `queries`, `columns` of them, a multiple of kScoreColumns and at most kPairColumns, which lie as `values` of
  // multiply_pairs(). `next`: kScoreRows rows, half of which are asked for meanwhile: sixteen, then sixteen that are
  // not; null = none.
  void (*score_rows)(const char* rows, int64_t row_bytes, int64_t width, const char* queries, int64_t columns,
                     float* scores, int64_t stride, const void* const* next);
};

constexpr int64_t kDotRows = 4;
constexpr int64_t kF8Columns = 64;
constexpr int64_t kF8Rows = 128;  // that a part of a tile is widened for; it is widened again for more
constexpr int64_t kPairColumns = 64;
constexpr int64_t kFewPairRows = 4;  // up to which loops over pairs are faster than anything, since memory decides
constexpr int64_t kPackRows = 16;
constexpr int64_t kScoreRows = 64, kScoreColumns = 16;

constexpr int64_t kAttentionBlock = 64;  // positions that are widened at a time
constexpr int64_t kAttentionHeads = 4;   // that share a look at a block
// Floats of scratch for `rows` query rows.
constexpr int64_t attention_scratch(const AttentionArgs& args, int64_t rows) {
  const int64_t heads = args.n_heads, group = heads / args.n_kv_heads, sums = args.head_dim + 2;
  const int64_t of_row = heads * (sums + (args.head_dim + 1) / 2) + 2 * kAttentionHeads * kAttentionBlock;
  const int64_t of_rows = 2 * kAttentionBlock * args.head_dim + rows * group * sums + kAttentionBlock;
  return of_row < of_rows ? of_rows : of_row;
}

// Those that this machine runs, the widest last.
std::vector<const Simd*> runnable_simds();
// The widest, or the one that SLUICE_SIMD=base|avx2|avx512|avx512vnni|avx512bf16|amx in the environment asks for, if
// this machine runs it.
const Simd& choose_simd();

extern const Simd kSimdBase;
extern const Simd kSimdAvx2;
extern const Simd kSimdAvx512;
extern const Simd kSimdAvx512Vnni;
extern const Simd kSimdAvx512Bf16;
// With the products of simd_amx.cc; null if this machine does not run them.
const Simd* simd_amx();

}  // namespace sluice::kernels::cpu
