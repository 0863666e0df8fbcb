// Products of rows of bf16 by matrix tiles (AMX). Everything else is as with AVX-512 BF16.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/simd.h"

// It is compiled for this instruction set.
#include "kernels/cpu/simd_transpose.inc"

namespace sluice::kernels::cpu {
namespace {

// A tile is 16 rows of 64 bytes: of inputs 32 values each, of weights the pairs of 16 columns, of sums 16 columns.
constexpr int64_t kTileSide = 16, kTileValues = 32, kLine = 64;
constexpr int64_t kPairBytes = 4 * kPairColumns;        // a pair of values of each column
constexpr int64_t kStepBytes = kTileSide * kPairBytes;  // as many of them as a tile has; they follow each other
constexpr int64_t kStepLines = kStepBytes / kLine;
constexpr int64_t kGroup = 2 * kTileSide;  // rows of one pass over weights, which takes half the columns
constexpr int64_t kHalf = kPairColumns / 2;
constexpr int64_t kTogether = 2 * kGroup;  // rows whose passes take the same weights after one another
// Steps of the summed dimension that they take: of these and the next ones the second cache holds the weights.
constexpr int64_t kPart = 24;
constexpr int64_t kAhead = 8192;  // bytes that a single pass asks for ahead of use

// As the processor reads it.
struct alignas(kLine) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are of sums. The compiler's own functions for tiles do not tell it what memory they read.
void set_tile_rows(const int64_t (&rows)[8]) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = kLine;
    config.rows[i] = static_cast<uint8_t>(rows[i]);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
}
template <int kTile>
void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
void load_tile(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
void store_tile(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kSums, int kInputs, int kWeights>
void add_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kInputs), "i"(kWeights));
}

// Inputs and weights of `count` steps of the summed dimension, kTileValues each.
struct Steps {
  int64_t count;
  const char* x;
  int64_t x_row;  // bytes from a row to the next
  const char* values;
};
// Weights that will be wanted: some lines of each step's.
struct Ahead {
  const char* from;
  int64_t lines;
};
inline void fetch(const Ahead& ahead, int64_t step) {
  for (int64_t i = 0; i < ahead.lines; ++i) __builtin_prefetch(ahead.from + step * kStepBytes + i * kLine, 0, 2);
}

// A pass of up to 16 rows and kColumnTiles tiles of columns.
template <int kColumnTiles>
struct FewRows {
  static void set(int64_t rows) { set_tile_rows({rows, rows, rows, rows, rows, kTileSide, kTileSide, kTileSide}); }
  static void add(const Steps& steps, const Ahead& ahead) {
    const int64_t x_row = steps.x_row;  // stays in a register
    const char *x = steps.x, *values = steps.values;
    for (int64_t k = 0; k < steps.count; ++k, x += kLine, values += kStepBytes) {
      fetch(ahead, k);
      load_tile<4>(x, x_row);
      load_tile<5>(values, kPairBytes);
      add_products<0, 4, 5>();
      load_tile<6>(values + kLine, kPairBytes);
      add_products<1, 4, 6>();
      if constexpr (kColumnTiles == 4) {
        load_tile<7>(values + 2 * kLine, kPairBytes);
        add_products<2, 4, 7>();
        load_tile<5>(values + 3 * kLine, kPairBytes);
        add_products<3, 4, 5>();
      }
    }
  }
  // body<tile>(row, column) for each tile of sums.
  template <class Body>
  static void each_sums(const Body& body) {
    body.template operator()<0>(0, 0);
    body.template operator()<1>(0, kTileSide);
    if constexpr (kColumnTiles == 4) {
      body.template operator()<2>(0, 2 * kTileSide);
      body.template operator()<3>(0, 3 * kTileSide);
    }
  }
};

// Of 17 to 32 rows and two tiles of columns.
struct ManyRows {
  static void set(int64_t rows) {
    const int64_t more = rows - kTileSide;
    set_tile_rows({kTileSide, kTileSide, more, more, kTileSide, more, kTileSide, kTileSide});
  }
  static void add(const Steps& steps, const Ahead& ahead) {
    const int64_t x_row = steps.x_row;
    const char *x = steps.x, *more = x + kTileSide * x_row, *values = steps.values;
    for (int64_t k = 0; k < steps.count; ++k, x += kLine, more += kLine, values += kStepBytes) {
      fetch(ahead, k);
      load_tile<6>(values, kPairBytes);
      load_tile<4>(x, x_row);
      add_products<0, 4, 6>();
      load_tile<7>(values + kLine, kPairBytes);
      add_products<1, 4, 7>();
      load_tile<5>(more, x_row);
      add_products<2, 5, 6>();
      add_products<3, 5, 7>();
    }
  }
  template <class Body>
  static void each_sums(const Body& body) {
    body.template operator()<0>(0, 0);
    body.template operator()<1>(0, kTileSide);
    body.template operator()<2>(kTileSide, 0);
    body.template operator()<3>(kTileSide, kTileSide);
  }
};

// `rest`: what is less than a step, with zeros behind it, if there is any. `sums`, kPairColumns apart, are the pass'
// own; `more`: they are added to.
template <class Shape>
void pass(const Steps& steps, const Steps& rest, const Ahead& ahead, bool more, float* sums) {
  if (more) {
    Shape::each_sums([&]<int kTile>(int64_t row, int64_t column) {
      load_tile<kTile>(sums + row * kPairColumns + column, kPairBytes);
    });
  } else {
    Shape::each_sums([]<int kTile>(int64_t, int64_t) { zero_tile<kTile>(); });
  }
  Shape::add(steps, ahead);
  Shape::add(rest, {});
  Shape::each_sums([&]<int kTile>(int64_t row, int64_t column) {
    store_tile<kTile>(sums + row * kPairColumns + column, kPairBytes);
  });
}

// Inputs from a step on that may not be whole, with zeros behind them.
class LastInputs {
 public:
  // kTogether rows at most, `count` values each.
  const char* copy(const uint16_t* x, int64_t x_stride, int64_t rows, int64_t count) {
    std::memset(values_, 0, static_cast<size_t>(rows * kLine));
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(values_ + r * kTileValues, x + r * x_stride, static_cast<size_t>(2 * count));
    }
    return reinterpret_cast<const char*>(values_);
  }

 private:
  alignas(kLine) uint16_t values_[kTogether * kTileValues];
};

// Passes over some columns of a weight.
class Passes {
 public:
  explicit Passes(int64_t columns) : columns_(columns) {}

  // That some rows take.
  int64_t count(int64_t rows) const {
    const int64_t halves = columns_ / kHalf, last = rows % kGroup;
    return rows / kGroup * halves + (last == 0 ? 0 : last <= kTileSide ? 1 : halves);
  }

  // Each asks for the lines behind those that the one before asked for. sums [rows, kPairColumns].
  void run(const Steps& steps, const Steps& rest, Ahead ahead, bool more, int64_t rows, float* sums) {
    for (int64_t row = 0; row < rows; row += kGroup) {
      const int64_t own = std::min(kGroup, rows - row);
      // Setting the shapes of tiles takes a tenth of a group's time.
      if (own != set_rows_) own <= kTileSide ? FewRows<4>::set(own) : ManyRows::set(own);
      set_rows_ = own;
      const auto run = [&]<class Shape>(int64_t column, Shape) {
        const auto from = [&](Steps all) {
          if (all.count == 0) return all;
          all.x += row * all.x_row;
          all.values += 4 * column;
          return all;
        };
        pass<Shape>(from(steps), from(rest), ahead, more, sums + row * kPairColumns + column);
        ahead.from += ahead.lines * kLine;
      };
      if (own > kTileSide) {
        for (int64_t column = 0; column < columns_; column += kHalf) run(column, ManyRows());
      } else if (columns_ == kPairColumns) {
        run(0, FewRows<4>());
      } else {
        run(0, FewRows<2>());
      }
    }
  }

 private:
  int64_t columns_;
  int64_t set_rows_ = 0;
};

void put_sums(const float* sums, int64_t rows, int64_t columns, const Sums& to) {
  for (int64_t r = 0; r < rows; ++r, sums += kPairColumns) {
    float* out = to.out + r * to.stride;
    for (int64_t c = 0; c < columns; ++c) {
      out[c] = (to.accumulate ? out[c] : 0) + sums[c] + (to.bias == nullptr ? 0 : to.bias[c]);
    }
  }
}

Sums from_row(const Sums& to, int64_t row) { return {to.out + row * to.stride, to.stride, to.bias, to.accumulate}; }

void release_tiles() { asm volatile("tilerelease"); }

void multiply_pairs(const char* values, int64_t in, const uint16_t* x, int64_t x_stride, int64_t rows, int64_t columns,
                    const Sums& to) {
  // Of so few rows memory decides, and the loops read it a tenth faster.
  if (rows <= kFewPairRows) return kSimdAvx512Bf16.multiply_pairs(values, in, x, x_stride, rows, columns, to);
  alignas(kLine) float sums[kTogether * kPairColumns];
  alignas(kLine) char last_values[kStepBytes];
  LastInputs last_inputs;
  const int64_t steps = in / kTileValues, left = in % kTileValues;
  if (left > 0) {
    std::memset(last_values, 0, sizeof(last_values));
    for (int64_t pair = 0; pair < left / 2; ++pair) {
      std::memcpy(last_values + pair * kPairBytes, values + steps * kStepBytes + pair * kPairBytes,
                  static_cast<size_t>(4 * columns));
    }
  }
  Passes passes(columns);
  for (int64_t row = 0; row < rows; row += kTogether) {
    const int64_t own = std::min(kTogether, rows - row), count = passes.count(own);
    const uint16_t* own_x = x + row * x_stride;
    const Steps rest{left > 0, left > 0 ? last_inputs.copy(own_x + steps * kTileValues, x_stride, own, left) : nullptr,
                     kLine, last_values};
    // The first rows ask for what comes next, an equal share in each pass; a pass by itself for what it will take soon.
    const int64_t lines = row > 0 ? 0 : (kStepLines + count - 1) / count, part = count == 1 ? steps : kPart;
    for (int64_t k = 0, end;; k = end) {
      end = std::min(k + part, steps);
      passes.run(
          {end - k, reinterpret_cast<const char*>(own_x + k * kTileValues), 2 * x_stride, values + k * kStepBytes},
          end == steps ? rest : Steps{}, {values + (count == 1 ? kAhead : end * kStepBytes), lines}, k > 0, own, sums);
      if (end == steps) break;
    }
    put_sums(sums, own, columns, from_row(to, row));
  }
  release_tiles();
}

// Adds what scaled columns of sums are to `kept`, or puts it there.
void add_scaled_sums(const float* sums, const float* scales, int64_t rows, bool more, float* kept) {
  for (int64_t r = 0; r < rows; ++r, sums += kPairColumns, kept += kPairColumns) {
    for (int64_t c = 0; c < kPairColumns; ++c) kept[c] = (more ? kept[c] : 0) + sums[c] * scales[c];
  }
}

// Values that share their scales are widened into the first cache, for kF8Rows rows.
void multiply_f8_tile(const uint8_t* values, const float* scales, int64_t in, const uint16_t* x, int64_t x_stride,
                      int64_t rows, const Sums& to) {
  static_assert(kF8Columns == kPairColumns && kScaledValues % kTileValues == 0 && kF8Rows % kTogether == 0);
  if (rows <= kFewPairRows) return kSimdAvx512Bf16.multiply_f8_tile(values, scales, in, x, x_stride, rows, to);
  alignas(kLine) uint16_t wide[kScaledValues * kF8Columns];
  alignas(kLine) float sums[kTogether * kF8Columns];
  alignas(kLine) float kept[kF8Rows * kF8Columns];
  LastInputs last_inputs;
  Passes passes(kF8Columns);
  for (int64_t first = 0; first < rows; first += kF8Rows) {
    const int64_t end = std::min(first + kF8Rows, rows);
    for (int64_t k = 0; k < in; k += kScaledValues) {
      const int64_t size = std::min(kScaledValues, in - k), steps = size / kTileValues, left = size % kTileValues;
      // Rows are filled with zeros to whole steps.
      kSimdAvx512Bf16.widen_f8_pairs(values + k * kF8Columns, (steps + (left > 0)) * kTileValues * kF8Columns, wide);
      const char* weights = reinterpret_cast<const char*>(wide);
      for (int64_t row = first; row < end; row += kTogether) {
        const int64_t own = std::min(kTogether, end - row);
        const uint16_t* own_x = x + row * x_stride + k;
        Steps rest{};
        if (left > 0) {
          rest = {1, last_inputs.copy(own_x + steps * kTileValues, x_stride, own, left), kLine,
                  weights + steps * kStepBytes};
        }
        passes.run({steps, reinterpret_cast<const char*>(own_x), 2 * x_stride, weights}, rest, {}, /*more=*/false, own,
                   sums);
        add_scaled_sums(sums, scales + k / kScaledValues * kF8Columns, own, /*more=*/k > 0,
                        kept + (row - first) * kF8Columns);
      }
    }
    put_sums(kept, end - first, kF8Columns, from_row(to, first));
  }
  release_tiles();
}

// Rows of a cache times queries: sums have a row for each of the rows, which are the inputs here.
template <int kRowTiles, int kColumnTiles>
struct ScoreTiles {
  static_assert(kRowTiles * kColumnTiles == 4);
  static constexpr int64_t kRows = kRowTiles * kTileSide, kColumns = kColumnTiles * kTileSide;

  template <int kRowTile>
  static void add_row_tile(const char* rows, int64_t row_bytes) {
    constexpr int kInputs = 4 + kRowTile % 2, kFirst = kRowTile * kColumnTiles;
    load_tile<kInputs>(rows + kRowTile * kTileSide * row_bytes, row_bytes);
    add_products<kFirst, kInputs, 6>();
    if constexpr (kColumnTiles == 2) add_products<kFirst + 1, kInputs, 7>();
  }
  template <int kTile>
  static void put(float* scores, int64_t stride) {
    constexpr int kRow = kTile / kColumnTiles * kTileSide, kColumn = kTile % kColumnTiles * kTileSide;
    alignas(kLine) U32x16 square[kTileSide];
    store_tile<kTile>(square, kLine);
    transpose(square);
    for (int64_t c = 0; c < kTileSide; ++c) {
      std::memcpy(scores + (kColumn + c) * stride + kRow, &square[c], sizeof(U32x16));
    }
  }
  static void run(const char* rows, int64_t row_bytes, int64_t width, const char* queries, float* scores,
                  int64_t stride, const void* const* next) {
    zero_tile<0>();
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
    for (int64_t k = 0; k < 2 * width; k += kLine, queries += kStepBytes) {
      for (int64_t r = 0; next != nullptr && r < kRows; ++r) {
        if (r % (2 * kPackRows) < kPackRows) __builtin_prefetch(static_cast<const char*>(next[r]) + k, 0, 2);
      }
      load_tile<6>(queries, kPairBytes);
      if constexpr (kColumnTiles == 2) load_tile<7>(queries + kLine, kPairBytes);
      add_row_tile<0>(rows + k, row_bytes);
      add_row_tile<1>(rows + k, row_bytes);
      if constexpr (kRowTiles == 4) {
        add_row_tile<2>(rows + k, row_bytes);
        add_row_tile<3>(rows + k, row_bytes);
      }
    }
    put<0>(scores, stride);
    put<1>(scores, stride);
    put<2>(scores, stride);
    put<3>(scores, stride);
  }
};

void score_rows(const char* rows, int64_t row_bytes, int64_t width, const char* queries, int64_t columns, float* scores,
                int64_t stride, const void* const* next) {
  set_tile_rows({kTileSide, kTileSide, kTileSide, kTileSide, kTileSide, kTileSide, kTileSide, kTileSide});
  using Few = ScoreTiles<4, 1>;
  using Many = ScoreTiles<2, 2>;
  static_assert(Few::kRows == kScoreRows);
  for (int64_t c = 0; c < columns;) {
    const char* own = queries + 4 * c;
    float* to = scores + c * stride;
    if (columns - c == kTileSide) {
      Few::run(rows, row_bytes, width, own, to, stride, c == 0 ? next : nullptr);
      break;
    }
    for (int64_t r = 0; r < kScoreRows; r += Many::kRows) {
      Many::run(rows + r * row_bytes, row_bytes, width, own, to + r, stride,
                c == 0 && next != nullptr ? next + r : nullptr);
    }
    c += Many::kColumns;
  }
  release_tiles();
}

// The kernel keeps the registers of tiles only of processes that ask for them.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const Simd* simd_amx() {
  static const bool runs = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles();
  static const Simd simd = [] {
    Simd with_tiles = kSimdAvx512Bf16;
    with_tiles.name = "amx";
    with_tiles.multiply_pairs = multiply_pairs;
    with_tiles.multiply_f8_tile = multiply_f8_tile;
    with_tiles.pair_step = kTileValues;
    with_tiles.has_tiles = true;
    with_tiles.pair_rows = 512;
    with_tiles.score_rows = score_rows;
    return with_tiles;
  }();
  return runs ? &simd : nullptr;
}

}  // namespace sluice::kernels::cpu
