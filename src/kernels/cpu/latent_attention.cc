#include "kernels/cpu/latent_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/block_attention.h"

namespace sluice::kernels::cpu {
namespace {

// Positions that are gathered at a time: with DeepSeek's rows of 576 values they fit the second cache.
constexpr int64_t kPositions = 256;
// The last block of positions is filled with zeros to a multiple of this, so that few shapes of products occur.
constexpr int64_t kPlainStep = 32;
static_assert(kPositions % kPairColumns == 0 && kPairColumns % kPlainStep == 0);
// Rows of the products, query rows times heads: enough to fill the matrix units.
constexpr int64_t kProductRows = 256;
// A long sequence is cut where a step has fewer pieces of work than this. The more rows a product has the more it costs
// to merge a piece, so the more positions should be in it. None of it depends on the number of threads, so that the
// result does not.
constexpr int64_t kEnoughPieces = 8;
constexpr int64_t shortest_cut(int64_t product_rows) { return std::clamp<int64_t>(4 * product_rows, kPositions, 512); }

PlainShape scores_shape(int64_t m, int64_t width, int64_t padded, DType dtype) {
  return {.m = m, .k = width, .n = padded, .dtype = dtype, .b_transposed = true};
}
PlainShape sums_shape(int64_t m, int64_t width, int64_t padded, DType dtype, bool accumulate) {
  return {.m = m, .k = padded, .n = width, .dtype = dtype, .accumulate = accumulate};
}

struct CachedRows {
  const LatentAttentionArgs& args;
  const int32_t* slots;
  const char* operator()(int64_t c) const { return static_cast<const char*>(args.cache) + slots[c] * args.row.bytes(); }
};

}  // namespace

LatentAttention::LatentAttention(int threads, const Simd& simd)
    : simd_(simd), products_(threads), packed_products_(threads, simd), scratch_(static_cast<size_t>(threads)) {}

void LatentAttention::run(const LatentAttentionArgs& args, ThreadPool& pool) {
  plan(args);
  const int64_t width = args.latent + args.rotary;
  if (simd_.score_rows != nullptr && args.dtype == DType::kBf16 && width % 32 == 0 && args.latent % kPairColumns == 0) {
    way_ = Way::kTiles;
  } else if (packs(width, args.dtype) && prepare(args, /*packed=*/true)) {
    way_ = Way::kPacked;
  } else {
    way_ = Way::kPlain;
    prepare(args, /*packed=*/false);
  }
  // The longest pieces, the last rows of long sequences, are handed out first.
  pool.parallel_for(static_cast<int64_t>(pieces_.size()), [&](int64_t i, int thread) {
    attend(args, pieces_[pieces_.size() - 1 - static_cast<size_t>(i)], thread);
  });
  pool.parallel_for(static_cast<int64_t>(cut_.size()), [&](int64_t i, int) {
    const size_t first = cut_[static_cast<size_t>(i)];
    size_t last = first;
    while (last < pieces_.size() && pieces_[last].sequence == pieces_[first].sequence &&
           pieces_[last].first_row == pieces_[first].first_row) {
      ++last;
    }
    merge(args, first, last);
  });
}

void LatentAttention::plan(const LatentAttentionArgs& args) {
  pieces_.clear();
  cut_.clear();
  const int64_t rows_per_piece = std::max<int64_t>(1, kProductRows / args.n_heads);
  int64_t uncut = 0;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const int64_t queries = args.query_start[s + 1] - args.query_start[s];
    uncut += (queries + rows_per_piece - 1) / rows_per_piece;
  }
  const int64_t cuts_wanted = uncut == 0 ? 1 : (kEnoughPieces + uncut - 1) / uncut;
  int64_t partial_floats = 0;
  for (int64_t s = 0; s < args.n_seqs; ++s) {
    const int64_t queries = args.query_start[s + 1] - args.query_start[s];
    for (int64_t row = 0; row < queries; row += rows_per_piece) {
      const int64_t rows = std::min(rows_per_piece, queries - row);
      const int64_t end = args.seq_lens[s] - queries + row + rows;  // positions that the last row sees
      const int64_t cuts = std::clamp<int64_t>(end / shortest_cut(rows * args.n_heads), 1, cuts_wanted);
      const int64_t length = round_up((end + cuts - 1) / cuts, kPositions);
      if (length < end) cut_.push_back(pieces_.size());
      for (int64_t begin = 0; begin < end; begin += length) {
        pieces_.push_back({s, row, rows, begin, std::min(end, begin + length), nullptr});
        if (length < end) partial_floats += rows * args.n_heads * (args.latent + 2);
      }
    }
  }
  float* partial = at_least(partials_, partial_floats);
  for (const size_t first : cut_) {
    const Piece& whole = pieces_[first];
    for (size_t i = first;
         i < pieces_.size() && pieces_[i].sequence == whole.sequence && pieces_[i].first_row == whole.first_row; ++i) {
      pieces_[i].partial = partial;
      partial += pieces_[i].rows * args.n_heads * (args.latent + 2);
    }
  }
}

bool LatentAttention::prepare(const LatentAttentionArgs& args, bool packed) {
  const int64_t width = args.latent + args.rotary, step = packed ? kPairColumns : kPlainStep;
  int64_t m = 0;
  uint64_t made = 0;  // of m rows, by positions and `accumulate`
  for (const Piece& piece : pieces_) {
    if (piece.rows * args.n_heads != m) made = 0;
    m = piece.rows * args.n_heads;
    for (int64_t base = piece.begin; base < piece.end; base += kPositions) {
      const bool accumulate = base > piece.begin;
      const int64_t padded = round_up(std::min(kPositions, piece.end - base), step);
      const uint64_t own = uint64_t{1} << (2 * padded / kPlainStep + accumulate);
      if ((made & own) != 0) continue;
      made |= own;
      if (!packed) {
        products_.prepare(scores_shape(m, width, padded, args.dtype));
        products_.prepare(sums_shape(m, width, padded, args.dtype, accumulate));
      } else if (scores_product(m, width, padded).staged || sums_product(m, width, padded, accumulate).staged) {
        // Results would need a place of their own first.
        packed_width_ = 0;
        plain_width_ = width;
        return false;
      }
    }
  }
  return true;
}

const Product& LatentAttention::scores_product(int64_t m, int64_t width, int64_t padded) const {
  return packed_products_.product(m, /*padded=*/false, width, padded, padded, DType::kBf16, /*accumulate=*/false,
                                  /*bias=*/false);
}
const Product& LatentAttention::sums_product(int64_t m, int64_t width, int64_t padded, bool accumulate) const {
  return packed_products_.product(m, /*padded=*/false, padded, width, width, DType::kBf16, accumulate,
                                  /*bias=*/false);
}

bool LatentAttention::packs(int64_t width, DType dtype) {
  if (dtype != DType::kBf16 || width % kPairColumns != 0 || width == plain_width_) return false;
  if (width == packed_width_) return true;
  bool packed = true;
  for (int64_t n = kPairColumns; n <= kPositions; n += kPairColumns) {
    packed = packed && packed_products_.pair_rows(width, n, dtype) == width &&
             packed_products_.pair_rows(n, width, dtype) == n;
  }
  (packed ? packed_width_ : plain_width_) = width;
  return packed;
}

void LatentAttention::read(const LatentAttentionArgs& args, const int32_t* slots, const Block& block,
                           Scratch& own) const {
  const auto [count, padded, visible] = block;
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t width = args.latent + args.rotary, bytes = width * (bf16 ? 2 : 4);
  const CachedRows row{args, slots};
  char* keys = at_least_bytes(own.keys, kPositions * bytes);
  if (way_ == Way::kPlain) {
    for (int64_t c = 0; c < count; ++c) simd_.read_kv(row(c), args.row, 0, width, keys + c * bytes, bf16);
    std::memset(keys + count * bytes, 0, static_cast<size_t>((padded - count) * bytes));
    return;
  }
  char* values = at_least_bytes(own.values, kPositions * bytes);
  char* const wide = at_least_bytes(own.rows, (kPackRows + 1) * bytes);
  char* const zeros = wide + kPackRows * bytes;
  std::memset(zeros, 0, static_cast<size_t>(bytes));
  const auto row_of = [&](int64_t c) {
    const char* from = zeros;
    if (c < count && args.row.dtype == DType::kBf16) {
      from = row(c);
    } else if (c < count) {
      char* to = wide + c % kPackRows * bytes;
      simd_.read_kv(row(c), args.row, 0, width, to, bf16);
      from = to;
    }
    return reinterpret_cast<const uint16_t*>(from);
  };
  const auto next_of = [&](int64_t c) { return row(std::min(c + kPackRows, visible - 1)); };
  pack_positions(simd_, padded, width, row_of, keys, values, next_of);
}

LatentAttention::EvenRows LatentAttention::even_rows(const LatentAttentionArgs& args, const int32_t* slots,
                                                     int64_t count, Scratch& own) const {
  const int64_t width = args.latent + args.rotary;
  const CachedRows row{args, slots};
  if (count == kScoreRows && args.row.dtype == DType::kBf16) {
    const int64_t apart = slots[1] - slots[0];
    bool evenly = true;
    for (int64_t c = 1; c < count; ++c) evenly = evenly && slots[c] - slots[c - 1] == apart;
    if (evenly) return {.first = row(0), .bytes_apart = apart * args.row.bytes()};
  }
  const int64_t bytes = width * 2;
  char* copied = at_least_bytes(own.copied, kScoreRows * bytes);
  for (int64_t c = 0; c < count; ++c) {
    simd_.read_kv(row(c), args.row, 0, width, copied + c * bytes, /*out_bf16=*/true);
  }
  std::memset(copied + count * bytes, 0, static_cast<size_t>((kScoreRows - count) * bytes));
  return {.first = copied, .bytes_apart = bytes};
}

void LatentAttention::score_by_tiles(const LatentAttentionArgs& args, const int32_t* slots, const Block& block,
                                     int64_t m, Scratch& own) const {
  const int64_t width = args.latent + args.rotary;
  char* values = at_least_bytes(own.values, kPositions * args.latent * 2);
  const CachedRows row{args, slots};
  for (int64_t first = 0; first < block.padded; first += kScoreRows) {
    const EvenRows rows = even_rows(args, slots + first, std::min(kScoreRows, block.count - first), own);
    // Half of the next block's rows are asked for while these are scored, half while they are packed.
    const void* next[kScoreRows];
    const bool asks = args.row.dtype == DType::kBf16 && first + kPositions < block.visible;
    for (int64_t r = 0; asks && r < kScoreRows; ++r) next[r] = row(std::min(first + kPositions + r, block.visible - 1));
    for (int64_t r = 0; r < m; r += kPairColumns) {
      simd_.score_rows(rows.first, rows.bytes_apart, width, own.pairs[0].bytes + r * width * 2,
                       round_up(std::min(kPairColumns, m - r), kScoreColumns),
                       own.scores.data() + r * block.padded + first, block.padded, asks && r == 0 ? next : nullptr);
    }
    for (int64_t c = 0; c < kScoreRows; c += kPackRows) {
      const uint16_t* packed[kPackRows];
      for (int64_t r = 0; r < kPackRows; ++r) {
        packed[r] = reinterpret_cast<const uint16_t*>(rows.first + (c + r) * rows.bytes_apart);
      }
      simd_.pack_pairs(packed, args.latent, nullptr, reinterpret_cast<uint16_t*>(values) + (first + c) * kPairColumns,
                       block.padded * kPairColumns, asks && c / kPackRows % 2 == 1 ? next + c : nullptr);
    }
  }
}

void LatentAttention::score(const LatentAttentionArgs& args, const int32_t* slots, const Block& block, int64_t m,
                            Scratch& own, int thread) const {
  if (way_ == Way::kTiles) return score_by_tiles(args, slots, block, m, own);
  const int64_t width = args.latent + args.rotary;
  read(args, slots, block, own);
  const void *q = own.queries.data(), *keys = own.keys[0].bytes;
  if (way_ == Way::kPacked) {
    packed_products_.execute(scores_product(m, width, block.padded), q, keys, own.scores.data(), nullptr, thread);
  } else {
    products_.multiply(scores_shape(m, width, block.padded, args.dtype), q, keys, own.scores.data(), thread);
  }
}

void LatentAttention::sum(const LatentAttentionArgs& args, const Block& block, int64_t m, bool accumulate, Scratch& own,
                          int thread) const {
  const int64_t width = summed(args);
  const char* weights = own.weights.data();
  float* sums = own.sums.data();
  if (way_ == Way::kTiles) {
    for (int64_t v = 0; v < width; v += kPairColumns) {
      simd_.multiply_pairs(own.values[0].bytes + v * block.padded * 2, block.padded,
                           reinterpret_cast<const uint16_t*>(weights), block.padded, m, kPairColumns,
                           {.out = sums + v, .stride = width, .bias = nullptr, .accumulate = accumulate});
    }
  } else if (way_ == Way::kPacked) {
    packed_products_.execute(sums_product(m, width, block.padded, accumulate), weights, own.values[0].bytes, sums,
                             nullptr, thread);
  } else {
    products_.multiply(sums_shape(m, width, block.padded, args.dtype, accumulate), weights, own.keys[0].bytes, sums,
                       thread);
  }
}

void LatentAttention::attend(const LatentAttentionArgs& args, const Piece& piece, int thread) {
  const bool bf16 = args.dtype == DType::kBf16;
  const int64_t element = bf16 ? 2 : 4;
  const int64_t width = args.latent + args.rotary;
  const int64_t heads = args.n_heads;
  const int64_t rows = piece.rows * heads;  // of the products
  const int64_t query_begin = args.query_start[piece.sequence];
  const int64_t queries = args.query_start[piece.sequence + 1] - query_begin;
  const int64_t first_position = args.seq_lens[piece.sequence] - queries + piece.first_row;
  const int32_t* slots = args.slot_table + args.table_rows[piece.sequence] * args.table_width;

  Scratch& own = scratch_[static_cast<size_t>(thread)];
  char* q = at_least(own.queries, rows * width * element);
  float* scores = at_least(own.scores, round_up(rows, kScoreColumns) * kPositions);
  char* weights = at_least(own.weights, rows * kPositions * element);
  float* sums = at_least(own.sums, rows * summed(args));
  float* state = at_least(own.state, rows * 2);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = query_begin + piece.first_row + i / heads, h = i % heads;
    char* to = q + i * width * element;
    simd_.narrow(args.q_latent + (row * heads + h) * args.latent, args.latent, to, bf16);
    simd_.narrow(args.q_rotary + row * args.q_rotary_stride + h * args.q_rotary_head_stride, args.rotary,
                 to + args.latent * element, bf16);
    state[2 * i] = -1e30f;
    state[2 * i + 1] = 0;
  }

  if (way_ == Way::kTiles) {
    char* pairs = at_least_bytes(own.pairs, round_up(rows, kPairColumns) * width * element);
    const auto row_of = [&](int64_t r) { return reinterpret_cast<const uint16_t*>(q) + std::min(r, rows - 1) * width; };
    pack_positions(simd_, round_up(rows, kPackRows), width, row_of, pairs, nullptr);
  }

  for (int64_t base = piece.begin; base < piece.end; base += kPositions) {
    const int64_t count = std::min(kPositions, piece.end - base);
    const int64_t padded = round_up(count, way_ == Way::kPlain ? kPlainStep : kPairColumns);
    const Block block{.count = count, .padded = padded, .visible = piece.end - base};
    score(args, slots + base, block, rows, own, thread);
    for (int64_t i = 0; i < rows; ++i) {
      // Causal: a row sees itself and what is before it.
      const int64_t visible = std::clamp<int64_t>(first_position + i / heads + 1 - base, 0, count);
      const float correction = simd_.softmax_step(scores + i * padded, visible, padded, args.scale, state + 2 * i,
                                                  weights + i * padded * element, bf16);
      if (base > piece.begin && correction != 1) simd_.scale(sums + i * summed(args), summed(args), correction);
    }
    sum(args, block, rows, /*accumulate=*/base > piece.begin, own, thread);
  }

  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = query_begin + piece.first_row + i / heads, h = i % heads;
    float* to =
        piece.partial == nullptr ? args.out + (row * heads + h) * args.latent : piece.partial + i * (args.latent + 2);
    std::memcpy(to, sums + i * summed(args), static_cast<size_t>(args.latent) * sizeof(float));
    if (piece.partial == nullptr) {
      simd_.scale(to, args.latent, 1 / state[2 * i + 1]);
    } else {
      to[args.latent] = state[2 * i];
      to[args.latent + 1] = state[2 * i + 1];
    }
  }
}

// Sums the pieces [first, last) of the same rows, each with its own maximum.
void LatentAttention::merge(const LatentAttentionArgs& args, size_t first, size_t last) const {
  const Piece& whole = pieces_[first];
  const int64_t stride = args.latent + 2;
  for (int64_t i = 0; i < whole.rows * args.n_heads; ++i) {
    float top = -1e30f;
    for (size_t p = first; p < last; ++p) top = std::max(top, pieces_[p].partial[i * stride + args.latent]);
    const int64_t row = args.query_start[whole.sequence] + whole.first_row;
    float* out = args.out + (row * args.n_heads + i) * args.latent;
    float total = 0;
    for (size_t p = first; p < last; ++p) {
      float* partial = pieces_[p].partial + i * stride;
      const float share = std::exp(partial[args.latent] - top);
      total += share * partial[args.latent + 1];
      simd_.add_scaled(partial, args.latent, share, out, /*accumulate=*/p > first);
    }
    simd_.scale(out, args.latent, 1 / total);
  }
}

}  // namespace sluice::kernels::cpu
