#include "kernels/cpu/grouped_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/memory.h"

namespace sluice::kernels::cpu {
namespace {

// Positions that are gathered at a time, and rows of products that share them: all of it stays in the second cache.
constexpr int64_t kPositions = 256;
constexpr int64_t kProductRows = 256;
// Rows of a product from which it pays: of ours, which leaves no row empty, unless they are one query's, whose loops
// read all heads of a position together; and of others, which are filled up to kRowStep.
constexpr int64_t kFewestPackedRows = 8, kFewestRows = 32;
// Query rows of the loops that share one widening of keys and values.
constexpr int64_t kLoopRows = 16;
// Long sequences are cut where a step has fewer pieces than this, into no shorter ones than that.
constexpr int64_t kEnoughPieces = 16;
constexpr int64_t kShortestCut = 256;

int64_t queries_of(const AttentionArgs& args, int64_t sequence) {
  return args.query_start[sequence + 1] - args.query_start[sequence];
}
int64_t group_of(const AttentionArgs& args) { return args.n_heads / args.n_kv_heads; }
// Of a row's partial result, for the heads of a KV head.
int64_t partial_floats(const AttentionArgs& args) { return group_of(args) * (args.head_dim + 2); }
// Into how many parts long sequences are cut.
int64_t cuts_wanted(int64_t uncut) { return uncut == 0 ? 1 : (kEnoughPieces + uncut - 1) / uncut; }
// Positions that the last of the rows sees.
int64_t end_of(const AttentionArgs& args, int64_t sequence, int64_t first_row, int64_t rows) {
  return args.seq_lens[sequence] - queries_of(args, sequence) + first_row + rows;
}

}  // namespace

GroupedAttention::GroupedAttention(int threads, const Simd& simd, bool own_products)
    : simd_(simd), own_products_(own_products), products_(threads), scratch_(static_cast<size_t>(threads)) {}

void GroupedAttention::run(const AttentionArgs& args, ThreadPool& pool) {
  plan_many(args);
  prepare(args);
  // The longest pieces, the last rows of long sequences, are handed out first.
  const auto& many = many_.pieces;
  pool.parallel_for(std::ssize(many), [&](int64_t i, int thread) {
    multiply(args, many[many.size() - 1 - static_cast<size_t>(i)], thread);
  });
  merge(args, many_, pool);
  plan_few(args);
  const int64_t floats = attention_scratch(args, kLoopRows);
  const auto& few = few_.pieces;
  pool.parallel_for(std::ssize(few), [&](int64_t i, int thread) {
    simd_.attention(args, few[few.size() - 1 - static_cast<size_t>(i)],
                    at_least(scratch_[static_cast<size_t>(thread)].loops, floats));
  });
  merge(args, few_, pool);
}

void GroupedAttention::Plan::clear() {
  pieces.clear();
  cuts.clear();
}

void GroupedAttention::Plan::add(const AttentionPiece& whole, int64_t wanted, int64_t step) {
  const int64_t end = whole.end, parts = std::clamp<int64_t>(end / kShortestCut, 1, wanted);
  const int64_t length = round_up((end + parts - 1) / parts, step);
  const size_t first = pieces.size();
  for (int64_t begin = 0; begin < end; begin += length) {
    pieces.push_back(whole);
    pieces.back().begin = begin;
    pieces.back().end = std::min(end, begin + length);
  }
  if (length < end) cuts.push_back({first, pieces.size()});
}

void GroupedAttention::Plan::place_partials(int64_t floats) {
  const auto each_part = [&](const auto& visit) {
    for (const Cut& cut : cuts) {
      for (size_t i = cut.first; i < cut.last; ++i) visit(pieces[i]);
    }
  };
  int64_t all = 0;
  each_part([&](const AttentionPiece& piece) { all += piece.rows * piece.kv_heads * floats; });
  float* partial = at_least(partials, all);
  each_part([&](AttentionPiece& piece) {
    piece.partial = partial;
    partial += piece.rows * piece.kv_heads * floats;
  });
}

bool GroupedAttention::has_many_rows(const AttentionArgs& args, int64_t sequence) const {
  const int64_t queries = queries_of(args, sequence);
  const int64_t fewest = packs(args) && queries > 1 ? kFewestPackedRows : kFewestRows;
  return args.head_dim % 16 == 0 && queries * group_of(args) >= fewest;
}

void GroupedAttention::plan_many(const AttentionArgs& args) {
  const int64_t rows = std::max<int64_t>(1, kProductRows / group_of(args));
  many_.clear();
  int64_t uncut = 0;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    if (has_many_rows(args, s)) uncut += (queries_of(args, s) + rows - 1) / rows * args.n_kv_heads;
  }
  // Other products are prepared for positions from the first one on.
  const int64_t wanted = packs(args) ? cuts_wanted(uncut) : 1;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    if (!has_many_rows(args, s)) continue;
    const int64_t queries = queries_of(args, s);
    for (int64_t row = 0; row < queries; row += rows) {
      const int64_t own = std::min(rows, queries - row);
      for (int64_t head = 0; head < args.n_kv_heads; ++head) {
        many_.add({s, row, own, head, 1, 0, end_of(args, s, row, own), nullptr}, wanted, kPositions);
      }
    }
  }
  many_.place_partials(partial_floats(args));
}

void GroupedAttention::prepare(const AttentionArgs& args) {
  if (packs(args)) return;
  const int64_t dim = args.head_dim, group = group_of(args);
  const BlockAttention attention(simd_, products_, scratch_[0].products, args.dtype, dim, dim, args.scale, 0);
  for (const AttentionPiece& piece : many_.pieces) {
    if (piece.kv_head > 0) continue;  // as the first one
    attention.prepare({.rows = piece.rows * group,
                       .padded = round_up(piece.rows * group, kRowStep),
                       .group = group,
                       .first_position = piece.end - piece.rows},
                      kPositions, piece.end);
  }
}

bool GroupedAttention::packs(const AttentionArgs& args) const {
  return own_products_ && packs_positions(args.dtype, args.head_dim, args.head_dim);
}

void GroupedAttention::plan_few(const AttentionArgs& args) {
  few_.clear();
  int64_t pieces = 0, of_all_heads = 0;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    if (has_many_rows(args, s)) continue;
    const int64_t queries = queries_of(args, s);
    for (int64_t row = 0; row < queries; row += kLoopRows) {
      ++pieces;
      if (takes_all_heads(args, std::min(kLoopRows, queries - row))) ++of_all_heads;
    }
  }
  if (pieces == 0) return;
  // Rows of the cache are read fastest as a whole.
  const bool whole_rows = pieces >= kEnoughPieces / 2;
  if (!whole_rows) of_all_heads = 0;
  const int64_t uncut = of_all_heads + (pieces - of_all_heads) * args.n_kv_heads;
  const int64_t wanted = cuts_wanted(uncut);
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    if (has_many_rows(args, s)) continue;
    const int64_t queries = queries_of(args, s);
    for (int64_t row = 0; row < queries; row += kLoopRows) {
      const int64_t rows = std::min(kLoopRows, queries - row), end = end_of(args, s, row, rows);
      const int64_t heads = whole_rows && takes_all_heads(args, rows) ? args.n_kv_heads : 1;
      for (int64_t head = 0; head < args.n_kv_heads; head += heads) {
        few_.add({s, row, rows, head, heads, 0, end, nullptr}, wanted, kAttentionBlock);
      }
    }
  }
  few_.place_partials(partial_floats(args));
}

PositionBlock GroupedAttention::read(const AttentionArgs& args, const AttentionPiece& piece, int64_t base,
                                     Scratch& own) const {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t dim = args.head_dim, bytes = dim * (bf16 ? 2 : 4);
  const int64_t count = std::min(kPositions, piece.end - base), padded = round_up(count, kPositionStep);
  const int32_t* slots = args.slot_table + args.table_rows[piece.sequence] * args.table_width + base;
  char* const keys = at_least_bytes(own.keys, kPositions * bytes);
  char* const values = at_least_bytes(own.values, kPositions * bytes);
  const auto stored = [&](const void* cache, int64_t c) {
    return static_cast<const char*>(cache) + slots[c] * args.row.bytes();
  };
  if (packs(args)) {
    char* const wide = at_least_bytes(own.rows, (kPackRows + 1) * bytes);
    char* const zeros = wide + kPackRows * bytes;
    std::memset(zeros, 0, static_cast<size_t>(bytes));
    const auto row_of = [&](const void* cache) {
      return [&, cache](int64_t c) {
        const char* row = zeros;
        if (c < count && args.row.dtype == DType::kBf16) {
          row = stored(cache, c) + piece.kv_head * bytes;
        } else if (c < count) {
          char* to = wide + c % kPackRows * bytes;
          simd_.read_kv(stored(cache, c), args.row, piece.kv_head * dim, dim, to, bf16);
          row = to;
        }
        return reinterpret_cast<const uint16_t*>(row);
      };
    };
    pack_positions(simd_, padded, dim, row_of(args.k_cache), keys, nullptr);
    pack_positions(simd_, padded, dim, row_of(args.v_cache), nullptr, values);
    return {.keys = keys, .values = values, .base = base, .count = count, .padded = padded, .packed = true};
  }
  for (int64_t c = 0; c < count; ++c) {
    simd_.read_kv(stored(args.k_cache, c), args.row, piece.kv_head * dim, dim, keys + c * bytes, bf16);
    simd_.read_kv(stored(args.v_cache, c), args.row, piece.kv_head * dim, dim, values + c * bytes, bf16);
  }
  const auto rest = static_cast<size_t>((padded - count) * bytes);
  std::memset(keys + count * bytes, 0, rest);
  std::memset(values + count * bytes, 0, rest);
  return {.keys = keys, .values = values, .base = base, .count = count, .padded = padded};
}

void GroupedAttention::merge(const AttentionArgs& args, const Plan& plan, ThreadPool& pool) const {
  pool.parallel_for(std::ssize(plan.cuts),
                    [&](int64_t i, int) { merge(args, plan, plan.cuts[static_cast<size_t>(i)]); });
}

void GroupedAttention::merge(const AttentionArgs& args, const Plan& plan, const Cut& cut) const {
  const AttentionPiece& whole = plan.pieces[cut.first];
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t dim = args.head_dim, heads = whole.kv_heads * group_of(args), stride = dim + 2;
  for (int64_t i = 0; i < whole.rows * heads; ++i) {
    float top = -1e30f;
    for (size_t p = cut.first; p < cut.last; ++p) top = std::max(top, plan.pieces[p].partial[i * stride + dim]);
    float* sum = whole.partial + i * stride;
    float total = 0;
    for (size_t p = cut.first; p < cut.last; ++p) {
      const float* partial = plan.pieces[p].partial + i * stride;
      const float share = std::exp(partial[dim] - top);
      total += share * partial[dim + 1];
      if (p == cut.first) {
        simd_.scale(sum, dim, share);
      } else {
        simd_.add_scaled(partial, dim, share, sum, /*accumulate=*/true);
      }
    }
    simd_.scale(sum, dim, 1 / total);
    const int64_t row = args.query_start[whole.sequence] + whole.first_row + i / heads;
    const int64_t head = whole.kv_head * group_of(args) + i % heads;
    simd_.narrow(sum, dim, static_cast<char*>(args.out) + (row * args.n_heads + head) * dim * (bf16 ? 2 : 4), bf16);
  }
}

void GroupedAttention::multiply(const AttentionArgs& args, const AttentionPiece& piece, int thread) {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4, dim = args.head_dim, group = group_of(args);
  const int64_t first_query = args.query_start[piece.sequence] + piece.first_row;
  const int64_t first_position = end_of(args, piece.sequence, piece.first_row, 0);
  const int64_t padded = round_up(piece.rows * group, kRowStep);

  Scratch& own = scratch_[static_cast<size_t>(thread)];
  const QueryRows rows{.queries = at_least(own.queries, padded * dim * element),
                       .sums = reinterpret_cast<float*>(at_least_bytes(own.sums, padded * dim * 4)),
                       .state = at_least(own.state, padded * 2),
                       .rows = piece.rows * group,
                       .padded = padded,
                       .group = group,
                       .first_position = first_position,
                       .begin = piece.begin};
  for (int64_t r = 0; r < piece.rows; ++r) {
    simd_.narrow(args.q + (first_query + r) * args.stride + piece.kv_head * group * dim, group * dim,
                 rows.queries + r * group * dim * element, bf16);
  }
  std::memset(rows.queries + rows.rows * dim * element, 0, static_cast<size_t>((padded - rows.rows) * dim * element));

  const BlockAttention attention(simd_, products_, own.products, args.dtype, dim, dim, args.scale, thread);
  BlockAttention::begin(rows);
  for (int64_t base = piece.begin; base < piece.end; base += kPositions) {
    attention.add(rows, read(args, piece, base, own));
  }
  for (int64_t r = 0; r < rows.rows; ++r) {
    if (piece.partial != nullptr) {
      attention.leave(rows, r, piece.partial + r * (dim + 2));
      continue;
    }
    const int64_t row = first_query + r / group, head = piece.kv_head * group + r % group;
    attention.finish(rows, r, static_cast<char*>(args.out) + (row * args.n_heads + head) * dim * element);
  }
}

}  // namespace sluice::kernels::cpu
