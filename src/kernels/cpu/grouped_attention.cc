#include "kernels/cpu/grouped_attention.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/memory.h"

namespace sluice::kernels::cpu {
namespace {

// Positions that are gathered at a time, and rows of products that share them: all of it stays in the second cache.
constexpr int64_t kPositions = 256;
constexpr int64_t kProductRows = 256;
// Rows of a product from which it pays.
constexpr int64_t kFewestRows = 32;

int64_t queries_of(const AttentionArgs& args, int64_t sequence) {
  return args.query_start[sequence + 1] - args.query_start[sequence];
}

}  // namespace

GroupedAttention::GroupedAttention(int threads, const Simd& simd)
    : simd_(simd), products_(threads), scratch_(static_cast<size_t>(threads)) {}

bool GroupedAttention::pays(const AttentionArgs& args, int64_t sequence) {
  return args.head_dim % 16 == 0 && queries_of(args, sequence) * (args.n_heads / args.n_kv_heads) >= kFewestRows;
}

void GroupedAttention::run(const AttentionArgs& args, ThreadPool& pool) {
  const int64_t rows = std::max<int64_t>(1, kProductRows / (args.n_heads / args.n_kv_heads));
  pieces_.clear();
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    if (!pays(args, s)) continue;
    const int64_t queries = queries_of(args, s);
    for (int64_t row = 0; row < queries; row += rows) {
      for (int64_t head = 0; head < args.n_kv_heads; ++head) {
        pieces_.push_back({s, row, std::min(rows, queries - row), head});
      }
    }
  }
  // The longest pieces, the last rows of long sequences, are handed out first.
  pool.parallel_for(std::ssize(pieces_), [&](int64_t i, int thread) {
    attend(args, pieces_[pieces_.size() - 1 - static_cast<size_t>(i)], thread);
  });
}

void GroupedAttention::attend(const AttentionArgs& args, const Piece& piece, int thread) {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4, dim = args.head_dim, group = args.n_heads / args.n_kv_heads;
  const int64_t first_query = args.query_start[piece.sequence] + piece.first_row;
  const int64_t first_position = args.seq_lens[piece.sequence] - queries_of(args, piece.sequence) + piece.first_row;
  const int64_t end = first_position + piece.rows;  // positions that the last row sees
  const int32_t* slots = args.slot_table + args.table_rows[piece.sequence] * args.table_width;
  const int64_t padded = round_up(piece.rows * group, kRowStep);

  Scratch& own = scratch_[static_cast<size_t>(thread)];
  const QueryRows rows{.queries = at_least(own.queries, padded * dim * element),
                       .sums = at_least(own.sums, padded * dim),
                       .state = at_least(own.state, padded * 2),
                       .rows = piece.rows * group,
                       .padded = padded,
                       .group = group,
                       .first_position = first_position};
  for (int64_t r = 0; r < piece.rows; ++r) {
    simd_.narrow(args.q + (first_query + r) * args.stride + piece.kv_head * group * dim, group * dim,
                 rows.queries + r * group * dim * element, bf16);
  }
  std::memset(rows.queries + rows.rows * dim * element, 0, static_cast<size_t>((padded - rows.rows) * dim * element));

  const BlockAttention attention(simd_, products_, own.products, args.dtype, dim, dim, args.scale, thread);
  BlockAttention::begin(rows);
  char* keys = at_least(own.keys, kPositions * dim * element);
  char* values = at_least(own.values, kPositions * dim * element);
  for (int64_t base = 0; base < end; base += kPositions) {
    const int64_t count = std::min(kPositions, end - base), filled = round_up(count, kPositionStep);
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = slots[base + c] * args.row.bytes(), to = c * dim * element;
      simd_.read_kv(static_cast<const char*>(args.k_cache) + at, args.row, piece.kv_head * dim, dim, keys + to, bf16);
      simd_.read_kv(static_cast<const char*>(args.v_cache) + at, args.row, piece.kv_head * dim, dim, values + to, bf16);
    }
    const auto rest = static_cast<size_t>((filled - count) * dim * element);
    std::memset(keys + count * dim * element, 0, rest);
    std::memset(values + count * dim * element, 0, rest);
    attention.add(rows, {.keys = keys, .values = values, .base = base, .count = count, .padded = filled});
  }
  for (int64_t r = 0; r < rows.rows; ++r) {
    const int64_t row = first_query + r / group, head = piece.kv_head * group + r % group;
    attention.finish(rows, r, static_cast<char*>(args.out) + (row * args.n_heads + head) * dim * element);
  }
}

}  // namespace sluice::kernels::cpu
