#include "kernels/cpu/expanded_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/memory.h"

namespace sluice::kernels::cpu {
namespace {

// Positions that are expanded at a time, query rows that share the expanded ones, and heads that share the gathered
// ones: with DeepSeek's sizes all of it stays in the second cache.
constexpr int64_t kPositions = 256;
constexpr int64_t kRows = 512;
constexpr int64_t kHeads = 2;

}  // namespace

// Positions [base, base + count) of a sequence.
struct ExpandedAttention::Block {
  const int32_t* slots;  // of them
  int64_t count;
  int64_t padded;
};

ExpandedAttention::ExpandedAttention(int threads, const Simd& simd, const Linear& linear)
    : simd_(simd), linear_(linear), products_(threads), scratch_(static_cast<size_t>(threads)) {}

void ExpandedAttention::run(const ExpandedAttentionArgs& args, ThreadPool& pool) {
  pieces_.clear();
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const int64_t queries = args.query_start[s + 1] - args.query_start[s];
    for (int64_t row = 0; row < queries; row += kRows) {
      for (int64_t head = 0; head < args.n_heads; head += kHeads) {
        pieces_.push_back({s, row, std::min(kRows, queries - row), head, std::min(args.n_heads, head + kHeads)});
      }
    }
  }
  if (!pieces_.empty()) prepare(args);
  // The longest pieces, the last rows of long sequences, are handed out first.
  pool.parallel_for(static_cast<int64_t>(pieces_.size()), [&](int64_t i, int thread) {
    attend(args, pieces_[pieces_.size() - 1 - static_cast<size_t>(i)], thread);
  });
}

void ExpandedAttention::prepare(const ExpandedAttentionArgs& args) {
  key_products_.clear();
  value_products_.clear();
  for (int64_t padded = kPositionStep; padded <= kPositions; padded += kPositionStep) {
    key_products_.push_back(&linear_.whole_product(*args.key_shape, padded));
    value_products_.push_back(&linear_.whole_product(*args.value_shape, padded));
  }
  if (packs(args)) return;
  const BlockAttention attention(simd_, products_, scratch_[0].products, args.dtype, args.key_shape->out + args.rotary,
                                 args.value_shape->out, args.scale, 0);
  for (const Piece& piece : pieces_) {
    if (piece.first_head > 0) continue;  // as the first ones
    const int64_t queries = args.query_start[piece.sequence + 1] - args.query_start[piece.sequence];
    const int64_t first_position = args.seq_lens[piece.sequence] - queries + piece.first_row;
    attention.prepare({.rows = piece.rows, .padded = round_up(piece.rows, kRowStep), .first_position = first_position},
                      kPositions, first_position + piece.rows);
  }
}

bool ExpandedAttention::packs(const ExpandedAttentionArgs& args) const {
  return linear_.pairs_are_fastest() &&
         packs_positions(args.dtype, args.key_shape->out + args.rotary, args.value_shape->out);
}

void ExpandedAttention::attend(const ExpandedAttentionArgs& args, const Piece& piece, int thread) {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4;
  const int64_t dim = args.key_shape->out + args.rotary, value = args.value_shape->out;
  const int64_t heads = piece.last_head - piece.first_head;
  const int64_t rows = round_up(piece.rows, kRowStep);
  const int64_t query_begin = args.query_start[piece.sequence];
  const int64_t queries = args.query_start[piece.sequence + 1] - query_begin;
  const int64_t first_position = args.seq_lens[piece.sequence] - queries + piece.first_row;
  const int64_t end = first_position + piece.rows;  // positions that the last row sees
  const int32_t* slots = args.slot_table + args.table_rows[piece.sequence] * args.table_width;

  Scratch& own = scratch_[static_cast<size_t>(thread)];
  QueryRows of_heads[kHeads];
  for (int64_t h = 0; h < heads; ++h) {
    char* of_head = at_least(own.queries, kHeads * rows * dim * element) + h * rows * dim * element;
    of_heads[h] = {.queries = of_head,
                   .sums = at_least(own.sums, kHeads * rows * value) + h * rows * value,
                   .state = at_least(own.state, kHeads * rows * 2) + h * rows * 2,
                   .rows = piece.rows,
                   .padded = rows,
                   .first_position = first_position};
    BlockAttention::begin(of_heads[h]);
    for (int64_t r = 0; r < piece.rows; ++r) {
      const float* from = args.q + (query_begin + piece.first_row + r) * args.q_stride + (piece.first_head + h) * dim;
      simd_.narrow(from, dim, of_head + r * dim * element, bf16);
    }
    std::memset(of_head + piece.rows * dim * element, 0, static_cast<size_t>((rows - piece.rows) * dim * element));
  }
  const BlockAttention attention(simd_, products_, own.products, args.dtype, dim, value, args.scale, thread);
  for (int64_t base = 0; base < end; base += kPositions) {
    const int64_t count = std::min(kPositions, end - base);
    const Block block{.slots = slots + base, .count = count, .padded = round_up(count, kPositionStep)};
    gather(args, block, own);
    for (int64_t h = 0; h < heads; ++h) {
      PositionBlock expanded = expand(args, block, piece.first_head + h, own, thread);
      expanded.base = base;
      attention.add(of_heads[h], expanded);
    }
  }

  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t r = 0; r < piece.rows; ++r) {
      const int64_t at = (query_begin + piece.first_row + r) * args.n_heads + piece.first_head + h;
      attention.finish(of_heads[h], r, static_cast<char*>(args.out) + at * value * element);
    }
  }
}

// The cached rows of a block, latent and rotary part apart.
void ExpandedAttention::gather(const ExpandedAttentionArgs& args, const Block& block, Scratch& own) const {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4;
  const int64_t latent_bytes = args.key_shape->in * element, rotary_bytes = args.rotary * element;
  char* latents = at_least(own.latents, Linear::padded_rows(kPositions) * latent_bytes);
  char* rotary = at_least(own.rotary, kPositions * rotary_bytes);
  for (int64_t c = 0; c < block.count; ++c) {
    const char* row = static_cast<const char*>(args.cache) + block.slots[c] * args.row.bytes();
    simd_.read_kv(row, args.row, 0, args.key_shape->in, latents + c * latent_bytes, bf16);
    simd_.read_kv(row, args.row, args.key_shape->in, args.rotary, rotary + c * rotary_bytes, bf16);
  }
  std::memset(latents + block.count * latent_bytes, 0,
              static_cast<size_t>((block.padded - block.count) * latent_bytes));
  std::memset(rotary + block.count * rotary_bytes, 0, static_cast<size_t>((block.padded - block.count) * rotary_bytes));
}

// Keys and values of one head for the gathered positions.
PositionBlock ExpandedAttention::expand(const ExpandedAttentionArgs& args, const Block& block, int64_t head,
                                        Scratch& own, int thread) const {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4;
  const int64_t nope = args.key_shape->out, value = args.value_shape->out, dim = nope + args.rotary;
  float* expanded = at_least(own.expanded, kPositions * std::max(nope, value));
  char* keys = at_least_bytes(own.keys, kPositions * dim * element);
  char* values = at_least_bytes(own.values, kPositions * value * element);
  const auto product = static_cast<size_t>(block.padded / kPositionStep - 1);
  linear_.multiply_whole(*key_products_[product],
                         static_cast<const char*>(args.keys) + static_cast<size_t>(head) * args.key_stride,
                         own.latents.data(), expanded, thread);
  for (int64_t c = 0; c < block.padded; ++c) {
    simd_.narrow(expanded + c * nope, nope, keys + c * dim * element, bf16);
    std::memcpy(keys + (c * dim + nope) * element, own.rotary.data() + c * args.rotary * element,
                static_cast<size_t>(args.rotary * element));
  }
  linear_.multiply_whole(*value_products_[product],
                         static_cast<const char*>(args.values) + static_cast<size_t>(head) * args.value_stride,
                         own.latents.data(), expanded, thread);
  simd_.narrow(expanded, block.padded * value, values, bf16);
  if (!packs(args)) {
    return {.keys = keys, .values = values, .base = 0, .count = block.count, .padded = block.padded};
  }
  const auto row_of = [](const char* rows, int64_t width) {
    return [=](int64_t c) { return reinterpret_cast<const uint16_t*>(rows) + c * width; };
  };
  char* packed_keys = at_least_bytes(own.packed_keys, kPositions * dim * element);
  char* packed_values = at_least_bytes(own.packed_values, kPositions * value * element);
  pack_positions(simd_, block.padded, dim, row_of(keys, dim), packed_keys, nullptr);
  pack_positions(simd_, block.padded, value, row_of(values, value), nullptr, packed_values);
  return {.keys = packed_keys,
          .values = packed_values,
          .base = 0,
          .count = block.count,
          .padded = block.padded,
          .packed = true};
}

}  // namespace sluice::kernels::cpu
