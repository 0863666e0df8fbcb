#include "kernels/cpu/linear.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/f8_tiles.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/packed_products.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/tile_products.h"

namespace sluice::kernels::cpu {
namespace {

// Rows of a product.
constexpr int64_t kMaxRows = 256;

// Weights that are kept as they are stored: a few rows are multiplied by our own loops; more are worth widening slabs
// of kWideColumns columns, which fit the second cache, for oneDNN or tiles of our own. Up to how many they are few:
constexpr int64_t kFewRows = PackedProducts::kExactRows;
constexpr int64_t kFewRoundedRows = 48;      // where oneDNN multiplies the others in bf16; see few_rows()
constexpr int64_t kFewRoundedTileRows = 24;  // where tiles of our own do
// Likewise, of FP8: by tiles as it is widened, by instructions for pairs of bf16, and on other machines.
constexpr int64_t kFewF8TileRows = 64, kFewF8Rows = 8, kFewestF8Rows = 2;
constexpr int64_t kWideColumns = 64;
constexpr int64_t kDotColumns = 32;  // a task's, of rows of FP8
// What a task has to read, where there is so much: some four microseconds. A value of a row of inputs counts as a byte.
constexpr int64_t kTaskBytes = 64 << 10;
// Rows of a task of tiles; those of FP8 are kF8Rows. More go through the weight again.
constexpr int64_t kTileTaskRows = 256;

// Output columns of one slab: a multiple of 64, and at most 16 slabs, which is as finely as the pool can divide the
// work.
int64_t slab_width(int64_t out) { return std::max<int64_t>(64, round_up((out + 15) / 16, 64)); }

struct Slab {
  int64_t first;
  int64_t width;
  size_t offset;  // into the packed weight
};

struct Layout {
  std::vector<Slab> slabs;
  size_t bytes = 0;
};

bool is_kept(const LinearShape& shape) { return shape.stored != DType::kF32; }
// Its form, unless it is packed for products: tiles of quantised.h, tiles of f8_tiles.h, or rows of FP8 as they are in
// a file.
enum class Kept : uint8_t { kNot, kTiles, kF8Tiles, kF8Rows };
// In the tiles of quantised.h.
bool in_tiles(const LinearShape& shape) { return keeps_blocks(shape.stored); }
// The slabs of kWideColumns columns.
int64_t wide_slabs(const LinearShape& shape) { return (shape.out + kWideColumns - 1) / kWideColumns; }

// A product of a weight that is kept as it is stored is of_weight times of_rows pieces: tiles, slabs of kWideColumns
// columns or kDotColumns rows of the weight, for some of the rows each; the pieces of the same rows follow each other.
// `grain` of them are a task. `few`: they are multiplied by our own loops.
struct KeptPieces {
  int64_t of_weight = 1, of_rows = 1, grain = 1;
  bool few = false;
  int64_t count() const { return of_weight * of_rows; }
};

// The product of as many rows as are taken at once, and that of the rest; null if there are none.
struct ByRows {
  const Product* most = nullptr;
  const Product* rest = nullptr;
  const Product& of(int64_t rows) const { return rows == kMaxRows ? *most : *rest; }
  bool divisible() const { return (most == nullptr || most->divisible) && (rest == nullptr || rest->divisible); }
};
template <class ProductOf>
ByRows by_rows(int64_t n, const ProductOf& product_of) {
  return {.most = n < kMaxRows ? nullptr : &product_of(kMaxRows),
          .rest = n % kMaxRows == 0 ? nullptr : &product_of(n % kMaxRows)};
}
// Of all slabs but the last and of the last, which may be narrower.
struct SlabProducts {
  ByRows wide, last;
  bool divisible() const { return wide.divisible() && last.divisible(); }
};

}  // namespace

class Linear::Impl {
 public:
  Impl(int threads, const Simd& simd)
      : simd_(simd),
        products_(threads, simd),
        staging_(static_cast<size_t>(threads)),
        widened_(static_cast<size_t>(threads)),
        wide_in_(static_cast<size_t>(threads)),
        head_in_(static_cast<size_t>(threads)),
        head_out_(static_cast<size_t>(threads)) {}

  bool multiplies(DType dtype) const { return products_.multiplies(dtype); }
  bool pairs_are_fastest() const { return products_.pairs_are_fastest(); }

  // With unrounded inputs bf16's own products are faster than widening blocks for them.
  bool keeps(const LinearShape& shape) const {
    if (shape.stored == DType::kF8E4M3) return multiplies(shape.dtype);
    if (!in_tiles(shape) || shape.in % static_cast<int64_t>(tensor::block_elements(shape.stored)) != 0) return false;
    return shape.dtype == DType::kF32 || (shape.rounded && multiplies(shape.dtype) && packs_pairs(shape));
  }

  // FP8 for products in bf16, by pairs.
  bool in_f8_tiles(const LinearShape& shape) const {
    return shape.stored == DType::kF8E4M3 && shape.dtype == DType::kBf16 && shape.in % 2 == 0 && packs_pairs(shape);
  }

  bool packs_pairs(const LinearShape& shape) const {
    return products_.pair_rows(shape.in, kPairColumns, shape.dtype) > 0;
  }

  size_t packed_bytes(const LinearShape& shape) const {
    if (in_tiles(shape)) return tiles_bytes(shape);
    if (in_f8_tiles(shape)) return static_cast<size_t>(wide_slabs(shape)) * f8_tile_bytes(shape.in);
    return is_kept(shape) ? static_cast<size_t>(shape.out) * scaled_row_bytes(shape.in) : layout(shape).bytes;
  }

  Layout layout(const LinearShape& shape) const {
    Layout layout;
    const int64_t width = shape.whole ? shape.out : slab_width(shape.out);
    for (int64_t first = 0; first < shape.out; first += width) {
      const int64_t columns = std::min(width, shape.out - first);
      layout.slabs.push_back({first, columns, layout.bytes});
      layout.bytes += (products_.packed_bytes(shape.in, columns, shape.dtype) + 63) / 64 * 64;
    }
    return layout;
  }

  std::string implementation(const LinearShape& shape, int64_t rows, bool accumulate, bool bias) const {
    if (is_kept(shape)) {
      const Kept kept = kept_as(shape);
      return rows <= few_rows(kept, shape)
                 ? "blocks"
                 : wide_product(kept, shape, rows, kWideColumns, accumulate, bias).implementation;
    }
    return products_
        .product(rows, /*padded=*/true, shape.in, layout(shape).slabs[0].width, shape.out, shape.dtype, accumulate,
                 bias)
        .implementation;
  }

  void pack(const LinearShape& shape, const RowReader& rows, void* to) const {
    if (in_tiles(shape)) return pack_tiles(shape, rows, static_cast<char*>(to));
    if (in_f8_tiles(shape)) return pack_f8_tiles(shape, rows, static_cast<char*>(to));
    if (is_kept(shape)) return rows(0, shape.out, to);
    SLUICE_CHECK(!rows.in_bf16 || shape.dtype == DType::kBf16, "rows of bf16 are for products of bf16");
    std::vector<float> wide;
    std::vector<uint16_t> narrow;
    for (const Slab& slab : layout(shape).slabs) {
      const auto count = static_cast<size_t>(slab.width * shape.in);
      if (!rows.in_bf16) wide.resize(count);
      if (shape.dtype == DType::kBf16) narrow.resize(count);
      void* from = shape.dtype == DType::kBf16 ? static_cast<void*>(narrow.data()) : wide.data();
      rows(slab.first, slab.width, rows.in_bf16 ? from : wide.data());
      if (from != wide.data() && !rows.in_bf16) {
        simd_.narrow(wide.data(), static_cast<int64_t>(count), narrow.data(), true);
      }
      products_.pack(from, shape.in, slab.width, shape.dtype, static_cast<char*>(to) + slab.offset);
    }
  }

  void multiply(const LinearArgs& args, ThreadPool& pool) const {
    const LinearShape& shape = *args.shape;
    if (is_kept(shape)) {
      const Kept kept = kept_as(shape);
      if (rounds(kept, shape, args.n)) {
        rounded_.resize(args.n, shape.in);
        each_row(pool, args.n, [&](int64_t row, int) { round(args, row, row); });
      }
      const SlabProducts products = widened_products(kept, shape, args.n, args.accumulate, args.bias != nullptr);
      const KeptPieces pieces = kept_pieces(kept, shape, args.n);
      return pool.parallel_runs(pieces.count(), pieces.grain, [&](int64_t begin, int64_t end, int thread) {
        multiply_kept(kept, args, products, pieces, begin, end, /*rounded=*/0, thread);
      });
    }
    const Layout& slabs = cached_layout(shape);
    const SlabProducts products = slab_products(slabs, shape, args.n, shape.out, args.accumulate, args.bias != nullptr);
    if (products.divisible()) return multiply_pairs(args, slabs, products, pool);
    const int64_t pieces = (args.n + kMaxRows - 1) / kMaxRows, count = std::ssize(slabs.slabs);
    pool.parallel_for(pieces * count, [&](int64_t task, int thread) {
      multiply_slab(args, slabs, products, task % count, task / count * kMaxRows, thread);
    });
  }

  // Whether both halves are whole blocks of columns of a packed weight, by which n rows are multiplied in parts. So are
  // fewer then.
  bool may_gate(const LinearShape& shape, int64_t n) const {
    if (is_kept(shape) || shape.out % (2 * kPairColumns) != 0) return false;
    const auto& slabs = cached_layout(shape).slabs;
    return std::ranges::all_of(std::array{slabs.front().width, slabs.back().width}, [&](int64_t width) {
      return products_.is_divisible(std::min(n, kMaxRows), shape.in, width, shape.dtype);
    });
  }

  bool multiply_gated(const GatedLinearArgs& args, ThreadPool& pool) const {
    const LinearArgs& product = args.product;
    SLUICE_CHECK(product.bias == nullptr && !product.accumulate, "gates have no bias, and what they make is not a sum");
    if (!may_gate(*product.shape, product.n)) return false;
    const Layout& slabs = cached_layout(*product.shape);
    const SlabProducts products = gated_products(slabs, *product.shape, product.n);
    each_pair_task(product.shape->out / 2, product.n, pool,
                   [&](int64_t column, int64_t columns, int64_t row, int64_t rows, int thread) {
                     multiply_gated_part(args, slabs, products, column, columns, row, rows, thread);
                   });
    return true;
  }

  // A task is some columns of one expert's, for all of its rows, which are multiplied in pieces as by
  // multiply_groups().
  bool multiply_gated_groups(const GatedGroupedLinearArgs& args, ThreadPool& pool) const {
    const LinearShape& shape = *args.product.shape;
    const int64_t width = shape.out / 2;
    const int64_t most = args.product.experts == 0
                             ? 0
                             : *std::max_element(args.product.counts, args.product.counts + args.product.experts);
    if (!may_gate(shape, most)) return false;
    const Layout& slabs = cached_layout(shape);
    const int64_t tasks = list_groups(args.product, [&](Group& group, int64_t rows) {
      group.products = gated_products(slabs, shape, rows);
      return width / kPairColumns;
    });
    pool.parallel_for(tasks, [&](int64_t i, int thread) {
      const Group& group = group_of(i);
      const int64_t out_row = width * (args.out_dtype == DType::kBf16 ? 2 : 4);
      const GatedLinearArgs own{.product = rows_of(args.product, group),
                                .out = static_cast<char*>(args.out) + args.product.starts[group.index] * out_row,
                                .out_dtype = args.out_dtype};
      for (int64_t first = 0; first < own.product.n; first += kMaxRows) {
        multiply_gated_part(own, slabs, group.products, (i - group.first_task) * kPairColumns, kPairColumns, first,
                            std::min(kMaxRows, own.product.n - first), thread);
      }
    });
    return true;
  }

  void multiply_groups(const GroupedLinearArgs& args, ThreadPool& pool) const {
    const LinearShape& shape = *args.shape;
    static const Layout kNoSlabs;
    const Layout& slabs = is_kept(shape) ? kNoSlabs : cached_layout(shape);
    const Kept kept = kept_as(shape);
    const int64_t tasks = list_groups(args, [&](Group& group, int64_t rows) {
      if (kept == Kept::kNot) {
        group.products = slab_products(slabs, shape, rows, shape.out, /*accumulate=*/false, /*bias=*/false);
        return std::ssize(slabs.slabs);
      }
      group.products = widened_products(kept, shape, rows, /*accumulate=*/false, /*bias=*/false);
      group.pieces = kept_pieces(kept, shape, rows);
      return (group.pieces.count() + group.pieces.grain - 1) / group.pieces.grain;
    });
    if (in_tiles(shape) && shape.rounded) round_groups(args, pool);
    pool.parallel_for(tasks, [&](int64_t i, int thread) {
      const Group& group = group_of(i);
      const LinearArgs own = rows_of(args, group);
      const int64_t task = i - group.first_task;
      if (kept != Kept::kNot) {
        const int64_t begin = task * group.pieces.grain;
        const int64_t end = std::min(begin + group.pieces.grain, group.pieces.count());
        return multiply_kept(kept, own, group.products, group.pieces, begin, end,
                             /*rounded=*/args.starts[group.index], thread);
      }
      // One slab, which stays in the cache for all rows.
      for (int64_t first = 0; first < own.n; first += kMaxRows) {
        multiply_slab(own, slabs, group.products, task, first, thread);
      }
    });
  }

  const Product& whole_product(const LinearShape& shape, int64_t rows) const {
    return products_.product(rows, /*padded=*/true, shape.in, shape.out, shape.out, shape.dtype, /*accumulate=*/false,
                             /*bias=*/false);
  }
  void multiply_whole(const Product& product, const void* weight, const void* in, float* out, int thread) const {
    products_.execute(product, in, weight, out, nullptr, thread);
  }

  // A task is some rows of one head, gathered for a product of their own.
  void multiply_heads(const HeadLinearArgs& args, ThreadPool& pool) const {
    const LinearShape& shape = *args.shape;
    SLUICE_CHECK(shape.whole && !is_kept(shape), "heads are multiplied by whole weights");
    const bool bf16 = shape.dtype == DType::kBf16, out_bf16 = args.out_dtype == DType::kBf16;
    const int64_t element = bf16 ? 2 : 4, out_element = out_bf16 ? 2 : 4;
    const int64_t row_tasks = (args.n + kMaxRows - 1) / kMaxRows;
    const ByRows products = by_rows(args.n, [&](int64_t rows) -> const Product& { return whole_product(shape, rows); });
    pool.parallel_for(args.n_heads * row_tasks, [&](int64_t task, int thread) {
      const int64_t h = task / row_tasks, first = task % row_tasks * kMaxRows;
      const int64_t rows = std::min(kMaxRows, args.n - first), padded = Linear::padded_rows(rows);
      auto& in = head_in_[static_cast<size_t>(thread)];
      in.resize(std::max(in.size(), static_cast<size_t>(padded * shape.in * element)));
      auto& out = head_out_[static_cast<size_t>(thread)];
      out.resize(std::max(out.size(), static_cast<size_t>(padded * shape.out)));
      for (int64_t r = 0; r < rows; ++r) {
        simd_.narrow(args.in + (first + r) * args.in_stride + h * args.in_head_stride, shape.in,
                     in.data() + r * shape.in * element, bf16);
      }
      multiply_whole(products.of(rows),
                     static_cast<const char*>(args.weights) + static_cast<size_t>(h) * args.weight_stride, in.data(),
                     out.data(), thread);
      for (int64_t r = 0; r < rows; ++r) {
        simd_.narrow(out.data() + r * shape.out, shape.out,
                     static_cast<char*>(args.out) + ((first + r) * args.n_heads + h) * shape.out * out_element,
                     out_bf16);
      }
    });
  }

 private:
  // An expert that has rows, its tasks, and what multiplies its rows.
  struct Group {
    int64_t index = 0;
    int64_t first_task = 0;
    KeptPieces pieces;
    SlabProducts products;
  };

  // The experts that have rows, as groups_; the largest are handed out first, so that the threads end together.
  // prepare(group, rows) says how many tasks the group has; one with as many rows as the one before is like that one.
  // Returns how many tasks there are.
  template <class Prepare>
  int64_t list_groups(const GroupedLinearArgs& args, const Prepare& prepare) const {
    groups_.clear();
    for (int64_t e = 0; e < args.experts; ++e) {
      if (args.counts[e] > 0) groups_.push_back({.index = e});
    }
    std::sort(groups_.begin(), groups_.end(), [&](const Group& a, const Group& b) {
      return args.counts[a.index] != args.counts[b.index] ? args.counts[a.index] > args.counts[b.index]
                                                          : a.index < b.index;
    });
    int64_t tasks = 0, own = 0;
    for (size_t i = 0; i < groups_.size(); ++i) {
      Group& group = groups_[i];
      const int64_t rows = args.counts[group.index];
      if (i > 0 && rows == args.counts[groups_[i - 1].index]) {
        group.products = groups_[i - 1].products;
        group.pieces = groups_[i - 1].pieces;
      } else {
        own = prepare(group, rows);
      }
      group.first_task = tasks;
      tasks += own;
    }
    return tasks;
  }
  const Group& group_of(int64_t task) const {
    const auto after = std::upper_bound(groups_.begin(), groups_.end(), task,
                                        [](int64_t i, const Group& group) { return i < group.first_task; });
    return *(after - 1);
  }
  static LinearArgs rows_of(const GroupedLinearArgs& args, const Group& group) {
    const int64_t start = args.starts[group.index], element = args.shape->dtype == DType::kBf16 ? 2 : 4;
    return {.shape = args.shape,
            .weight = static_cast<const char*>(args.weights) + static_cast<size_t>(group.index) * args.weight_stride,
            .in = static_cast<const char*>(args.in) + start * args.shape->in * element,
            .out = args.out + start * args.shape->out,
            .n = args.counts[group.index]};
  }

  // By the rank's thread, once for a call.
  Kept kept_as(const LinearShape& shape) const {
    if (!is_kept(shape)) return Kept::kNot;
    if (in_tiles(shape)) return Kept::kTiles;
    const auto [known, fresh] = f8_forms_.try_emplace({shape.in, shape.dtype});
    if (fresh) known->second = in_f8_tiles(shape) ? Kept::kF8Tiles : Kept::kF8Rows;
    return known->second;
  }

  // Rows up to which our own loops are faster than widening.
  int64_t few_rows(Kept kept, const LinearShape& shape) const {
    if (shape.dtype != DType::kBf16) return kFewRows;
    if (kept == Kept::kF8Rows) return kFewestF8Rows;
    // Where pairs are fastest in bf16 without tiles, twice as many values of eight bits are multiplied in the same
    // time, and FP8 takes the same loops.
    if (products_.pairs_are_fastest() && !simd_.has_tiles) return std::numeric_limits<int64_t>::max();
    if (kept == Kept::kTiles) return simd_.has_tiles ? kFewRoundedTileRows : kFewRoundedRows;
    if (simd_.has_tiles) return kFewF8TileRows;
    return simd_.native_pairs ? kFewF8Rows : kFewestF8Rows;
  }

  KeptPieces kept_pieces(Kept kept, const LinearShape& shape, int64_t rows) const {
    KeptPieces pieces{.few = rows <= few_rows(kept, shape)};
    if (!pieces.few || kept == Kept::kF8Tiles) {
      pieces.of_weight = wide_slabs(shape);
    } else if (kept == Kept::kTiles) {
      pieces.of_weight = tile_count(shape);
    } else {
      pieces.of_weight = (shape.out + kDotColumns - 1) / kDotColumns;
    }
    if (pieces.few && kept != Kept::kF8Rows) {
      const int64_t most = kept == Kept::kTiles ? kTileTaskRows : kF8Rows;
      pieces.of_rows = (rows + most - 1) / most;
    }
    if (pieces.few && kept == Kept::kTiles) {
      const auto bytes = static_cast<int64_t>(tile_bytes(shape.stored, shape.in));
      pieces.grain = std::max<int64_t>(1, kTaskBytes / std::max(bytes, shape.in * std::min(rows, kTileTaskRows)));
    }
    return pieces;
  }

  bool rounds(Kept kept, const LinearShape& shape, int64_t rows) const {
    return kept == Kept::kTiles && shape.rounded && rows <= few_rows(kept, shape);
  }
  void round(const LinearArgs& args, int64_t row, int64_t to) const {
    const bool bf16 = args.shape->dtype == DType::kBf16;
    rounded_.round(simd_, static_cast<const char*>(args.in) + row * args.shape->in * (bf16 ? 2 : 4), bf16, to);
  }
  // The rows of the groups that have few.
  void round_groups(const GroupedLinearArgs& args, ThreadPool& pool) const {
    int64_t rows = 0;
    for (const Group& group : groups_)
      rows = std::max<int64_t>(rows, args.starts[group.index] + args.counts[group.index]);
    rounded_.resize(rows, args.shape->in);
    pool.parallel_for(std::ssize(groups_), [&](int64_t i, int) {
      const int64_t group = groups_[static_cast<size_t>(i)].index;
      if (!rounds(Kept::kTiles, *args.shape, args.counts[group])) return;
      for (int64_t row = args.starts[group]; row < args.starts[group] + args.counts[group]; ++row) {
        round({.shape = args.shape, .in = args.in}, row, row);
      }
    });
  }

  // Pieces of a product of a weight that is kept as it is stored. `rounded` is the place of the first row among the
  // rounded ones.
  void multiply_kept(Kept kept, const LinearArgs& args, const SlabProducts& products, const KeptPieces& pieces,
                     int64_t begin, int64_t end, int64_t rounded, int thread) const {
    const LinearShape& shape = *args.shape;
    const int64_t of_weight = pieces.of_weight, of_rows = pieces.of_rows;
    const int64_t element = shape.dtype == DType::kBf16 ? 2 : 4;
    for (int64_t after; begin < end; begin = after) {
      const int64_t piece = begin / of_weight, first = piece * args.n / of_rows;
      after = std::min(end, (piece + 1) * of_weight);
      LinearArgs own = args;
      own.in = static_cast<const char*>(args.in) + first * shape.in * element;
      own.out = args.out + first * shape.out;
      own.n = (piece + 1) * args.n / of_rows - first;
      const int64_t from = begin - piece * of_weight, to = after - piece * of_weight;
      if (kept == Kept::kTiles && pieces.few) {
        multiply_tiles(simd_, own, from, to, shape.rounded ? &rounded_ : nullptr, rounded + first);
        continue;
      }
      for (int64_t i = from; i < to; ++i) {
        if (!pieces.few) {
          multiply_widened(kept, own, products, i, thread);
        } else if (kept == Kept::kF8Tiles) {
          multiply_f8_tile(own, i, thread);
        } else {
          multiply_f8_rows(own, i, thread);
        }
      }
    }
  }

  void multiply_f8_tile(const LinearArgs& args, int64_t index, int thread) const {
    const LinearShape& shape = *args.shape;
    const int64_t first = index * kF8Columns, columns = std::min(kF8Columns, shape.out - first);
    const char* tile = static_cast<const char*>(args.weight) + static_cast<size_t>(index) * f8_tile_bytes(shape.in);
    const auto multiply = [&](const Sums& to) {
      simd_.multiply_f8_tile(reinterpret_cast<const uint8_t*>(tile),
                             reinterpret_cast<const float*>(tile + f8_tile_values(shape.in)), shape.in,
                             static_cast<const uint16_t*>(args.in), shape.in, args.n, to);
    };
    if (columns == kF8Columns) {
      return multiply({.out = args.out + first,
                       .stride = shape.out,
                       .bias = args.bias == nullptr ? nullptr : args.bias + first,
                       .accumulate = args.accumulate});
    }
    float* whole = at_least(staging_[static_cast<size_t>(thread)], args.n * kF8Columns);
    multiply({.out = whole, .stride = kF8Columns, .bias = nullptr, .accumulate = false});
    put_columns(args, 0, args.n, first, columns, whole, kF8Columns);
  }

  void multiply_f8_rows(const LinearArgs& args, int64_t task, int thread) const {
    const LinearShape& shape = *args.shape;
    const bool bf16 = shape.dtype == DType::kBf16;
    const float* x = bf16 ? widened_rows(args, thread) : static_cast<const float*>(args.in);
    const int64_t end = std::min(shape.out, (task + 1) * kDotColumns);
    for (int64_t j = task * kDotColumns; j < end; ++j) {
      const char* row = static_cast<const char*>(args.weight) + static_cast<size_t>(j) * scaled_row_bytes(shape.in);
      for (int64_t first = 0; first < args.n; first += kDotRows) {
        const int64_t count = std::min(kDotRows, args.n - first);
        float sums[kDotRows];
        simd_.dot_f8(row, shape.in, x + first * shape.in, shape.in, count, sums);
        put_columns(args, first, count, j, 1, sums, 1);
      }
    }
  }

  // A slab of kWideColumns columns, widened first: [in, columns] of dtype, as the form of wide_product() wants it.
  void multiply_widened(Kept kept, const LinearArgs& args, const SlabProducts& products, int64_t task,
                        int thread) const {
    const LinearShape& shape = *args.shape;
    const bool bf16 = shape.dtype == DType::kBf16, bias = args.bias != nullptr;
    const int64_t element = bf16 ? 2 : 4, first = task * kWideColumns;
    const int64_t columns = std::min(kWideColumns, shape.out - first);
    auto* weight = reinterpret_cast<float*>(
        at_least_bytes(widened_[static_cast<size_t>(thread)], round_up(shape.in, kF8Pad) * kWideColumns * element));
    widen_slab(kept, args, task, columns, weight);
    // Rows of FP8 are as many as there are columns, tiles always whole.
    const int64_t width = wide_form(kept, shape) == Form::kColumns ? columns : kWideColumns;
    for (int64_t row = 0; row < args.n; row += kMaxRows) {
      const int64_t rows = std::min(kMaxRows, args.n - row);
      const void* in = static_cast<const char*>(args.in) + row * shape.in * element;
      const Product& product = (columns == kWideColumns ? products.wide : products.last).of(rows);
      if (width == columns) {
        run(product, args, in, weight, args.out + row * shape.out + first, bias ? args.bias + first : nullptr, thread);
        continue;
      }
      float* whole = at_least(staging_[static_cast<size_t>(thread)], Linear::padded_rows(rows) * kWideColumns);
      products_.execute(product, in, weight, whole, nullptr, thread);
      put_columns(args, row, rows, first, columns, whole, kWideColumns);
    }
  }

  void widen_slab(Kept kept, const LinearArgs& args, int64_t task, int64_t columns, float* weight) const {
    const LinearShape& shape = *args.shape;
    const bool bf16 = shape.dtype == DType::kBf16;
    const auto* stored = static_cast<const char*>(args.weight);
    if (kept == Kept::kTiles) {
      const TileKernels& kernels = simd_.tiles[tile_format(shape.stored)];
      const auto expand = bf16 ? kernels.expand_bf16 : kernels.expand_f32;
      const size_t bytes = tile_bytes(shape.stored, shape.in);
      const int64_t tile = task * kWideColumns / kTileColumns;
      if (columns < kWideColumns) std::fill_n(weight, shape.in * kWideColumns * (bf16 ? 2 : 4) / 4, 0.0f);
      for (int64_t t = 0; t * kTileColumns < columns; ++t) {
        // A column takes four bytes in either form: a pair of bf16 or a float32.
        expand(stored + static_cast<size_t>(tile + t) * bytes, shape.in / kBlockValues, kWideColumns,
               weight + t * kTileColumns);
      }
    } else if (kept == Kept::kF8Tiles) {
      const char* tile = stored + static_cast<size_t>(task) * f8_tile_bytes(shape.in);
      simd_.expand_f8_tile(reinterpret_cast<const uint8_t*>(tile),
                           reinterpret_cast<const float*>(tile + f8_tile_values(shape.in)), round_up(shape.in, kF8Pad),
                           reinterpret_cast<uint16_t*>(weight));
    } else {
      const size_t bytes = scaled_row_bytes(shape.in);
      for (int64_t r = 0; r < columns; ++r) {
        simd_.expand_f8(stored + static_cast<size_t>(task * kWideColumns + r) * bytes, shape.in,
                        reinterpret_cast<char*>(weight) + r * shape.in * (bf16 ? 2 : 4), bf16);
      }
    }
  }

  static Form wide_form(Kept kept, const LinearShape& shape) {
    if (kept == Kept::kTiles) return shape.dtype == DType::kBf16 ? Form::kPacked : Form::kRows;
    return kept == Kept::kF8Tiles ? Form::kPacked : Form::kColumns;
  }
  const Product& wide_product(Kept kept, const LinearShape& shape, int64_t rows, int64_t width, bool accumulate,
                              bool bias) const {
    return products_.product(rows, /*padded=*/true, shape.in, width, shape.out, shape.dtype, accumulate, bias,
                             wide_form(kept, shape));
  }

  // What multiply_widened() needs for n rows, made before the pool runs: an error of oneDNN cannot leave a task.
  SlabProducts widened_products(Kept kept, const LinearShape& shape, int64_t n, bool accumulate, bool bias) const {
    SlabProducts products;
    if (n <= few_rows(kept, shape)) return products;
    const auto whole = [&](int64_t rows) -> const Product& {
      return wide_product(kept, shape, rows, kWideColumns, accumulate, bias);
    };
    // Columns that are not all there, of which the result is brought to its place.
    const auto staged = [&](int64_t rows) -> const Product& {
      return products_.product(rows, /*padded=*/true, shape.in, kWideColumns, kWideColumns, shape.dtype,
                               /*accumulate=*/false, /*bias=*/false, wide_form(kept, shape));
    };
    const int64_t left = shape.out % kWideColumns;
    const auto narrow = [&](int64_t rows) -> const Product& {
      return wide_form(kept, shape) == Form::kColumns ? wide_product(kept, shape, rows, left, accumulate, bias)
                                                      : staged(rows);
    };
    if (shape.out >= kWideColumns) products.wide = by_rows(n, whole);
    if (left > 0) products.last = by_rows(n, narrow);
    return products;
  }

  // What multiply_slab() needs for n rows, likewise; results are out_stride floats apart.
  SlabProducts slab_products(const Layout& slabs, const LinearShape& shape, int64_t n, int64_t out_stride,
                             bool accumulate, bool bias) const {
    const auto of = [&](int64_t width) {
      return by_rows(n, [&](int64_t rows) -> const Product& {
        return products_.product(rows, /*padded=*/true, shape.in, width, out_stride, shape.dtype, accumulate, bias);
      });
    };
    SlabProducts products;
    products.wide = of(slabs.slabs.front().width);
    const int64_t last = slabs.slabs.back().width;
    products.last = last == slabs.slabs.front().width ? products.wide : of(last);
    return products;
  }

  // All of `columns` columns for n rows of a divisible product, by body(column, columns, row, rows, thread). A piece is
  // half a block of columns for some of the rows, a task two of these, but for the halves where two threads' runs meet:
  // narrow products have fewer blocks than would make threads end together. All rows take some columns before the next,
  // so that the second cache holds their weights.
  template <class Body>
  void each_pair_task(int64_t columns, int64_t n, ThreadPool& pool, const Body& body) const {
    const int64_t blocks = columns / kPairColumns, row_pieces = (n + simd_.pair_rows - 1) / simd_.pair_rows;
    constexpr int64_t kHalf = kPairColumns / 2;
    pool.parallel_runs(2 * blocks * row_pieces, 2, [&](int64_t begin, int64_t end, int thread) {
      const int64_t column = begin / 2 / row_pieces * kPairColumns + begin % 2 * kHalf, piece = begin / 2 % row_pieces;
      const int64_t first = piece * n / row_pieces, rows = (piece + 1) * n / row_pieces - first;
      body(column, (end - begin) * kHalf, first, rows, thread);
    });
  }

  // Some of it: those columns of those rows, to `out`.
  void multiply_part(const LinearArgs& args, const Layout& slabs, const SlabProducts& products, int64_t column,
                     int64_t columns, int64_t row, int64_t rows, float* out) const {
    const auto index = static_cast<size_t>(column / slabs.slabs.front().width);
    const Slab& slab = slabs.slabs[index];
    const ByRows& of = index + 1 < slabs.slabs.size() ? products.wide : products.last;
    // Any of its products knows all but the rows.
    products_.execute_part(of.rest == nullptr ? *of.most : *of.rest,
                           static_cast<const uint16_t*>(args.in) + row * args.shape->in,
                           static_cast<const char*>(args.weight) + slab.offset, out,
                           args.bias == nullptr ? nullptr : args.bias + column, rows, column - slab.first, columns);
  }

  // Of some columns of both halves, side by side in a buffer.
  SlabProducts gated_products(const Layout& slabs, const LinearShape& shape, int64_t n) const {
    return slab_products(slabs, shape, n, kPairColumns, /*accumulate=*/false, /*bias=*/false);
  }
  // Some columns of gates for some rows and as many of what they gate, and what comes of them while the second cache
  // holds both.
  void multiply_gated_part(const GatedLinearArgs& args, const Layout& slabs, const SlabProducts& products,
                           int64_t column, int64_t columns, int64_t row, int64_t rows, int thread) const {
    const int64_t width = args.product.shape->out / 2;
    const bool bf16 = args.out_dtype == DType::kBf16;
    float* gate = at_least(staging_[static_cast<size_t>(thread)], 2 * rows * kPairColumns);
    float* up = gate + rows * kPairColumns;
    multiply_part(args.product, slabs, products, column, columns, row, rows, gate);
    multiply_part(args.product, slabs, products, width + column, columns, row, rows, up);
    char* out = static_cast<char*>(args.out) + (row * width + column) * (bf16 ? 2 : 4);
    for (int64_t r = 0; r < rows; ++r) {
      simd_.silu_mul(gate + r * kPairColumns, up + r * kPairColumns, columns, out + r * width * (bf16 ? 2 : 4), bf16);
    }
  }

  void multiply_pairs(const LinearArgs& args, const Layout& slabs, const SlabProducts& products,
                      ThreadPool& pool) const {
    const int64_t out = args.shape->out;
    each_pair_task(out, args.n, pool, [&](int64_t column, int64_t columns, int64_t row, int64_t rows, int) {
      multiply_part(args, slabs, products, column, columns, row, rows, args.out + row * out + column);
    });
  }

  // Columns of a product of a packed weight, for rows from `first` on, kMaxRows at most.
  void multiply_slab(const LinearArgs& args, const Layout& slabs, const SlabProducts& products, int64_t index,
                     int64_t first, int thread) const {
    const LinearShape& shape = *args.shape;
    const Slab& slab = slabs.slabs[static_cast<size_t>(index)];
    const int64_t element = shape.dtype == DType::kBf16 ? 2 : 4;
    const int64_t rows = std::min(kMaxRows, args.n - first);
    run((index + 1 < std::ssize(slabs.slabs) ? products.wide : products.last).of(rows), args,
        static_cast<const char*>(args.in) + first * shape.in * element,
        static_cast<const char*>(args.weight) + slab.offset, args.out + first * shape.out + slab.first,
        args.bias == nullptr ? nullptr : args.bias + slab.first, thread);
  }

  // Inputs in bf16 as float32.
  const float* widened_rows(const LinearArgs& args, int thread) const {
    const int64_t count = args.n * args.shape->in;
    float* x = at_least(wide_in_[static_cast<size_t>(thread)], count);
    simd_.widen(args.in, /*in_bf16=*/true, count, x);
    return x;
  }

  void run(const Product& product, const LinearArgs& args, const void* in, const void* weight, float* out,
           const float* bias, int thread) const {
    if (!product.staged) return products_.execute(product, in, weight, out, bias, thread);
    float* staged = at_least(staging_[static_cast<size_t>(thread)], product.rows * product.width);
    products_.execute(product, in, weight, staged, nullptr, thread);
    for (int64_t r = 0; r < product.rows; ++r) {
      const float* from = staged + r * product.width;
      float* to = out + r * args.shape->out;
      for (int64_t j = 0; j < product.width; ++j) {
        to[j] = (args.accumulate ? to[j] : 0) + from[j] + (bias == nullptr ? 0 : bias[j]);
      }
    }
  }

  const Layout& cached_layout(const LinearShape& shape) const {
    auto& cached = layouts_[{shape.in, shape.out, shape.dtype, shape.whole}];
    if (cached.slabs.empty()) cached = layout(shape);
    return cached;
  }

  const Simd& simd_;
  const PackedProducts products_;
  mutable std::vector<std::vector<float>> staging_;                              // per thread of the pool
  mutable std::vector<std::vector<CacheLine>> widened_;                          // likewise
  mutable std::vector<std::vector<float>> wide_in_;                              // likewise
  mutable std::vector<std::vector<char>> head_in_;                               // likewise
  mutable std::vector<std::vector<float>> head_out_;                             // likewise
  mutable std::vector<Group> groups_;                                            // of the call in progress
  mutable RoundedRows rounded_;                                                  // likewise
  mutable std::map<std::tuple<int64_t, int64_t, DType, bool>, Layout> layouts_;  // the rank's thread only
  mutable std::map<std::pair<int64_t, DType>, Kept> f8_forms_;                   // likewise
};

Linear::Linear(int threads, const Simd& simd) : impl_(std::make_unique<Impl>(threads, simd)) {}
Linear::~Linear() = default;

bool Linear::multiplies(DType dtype) const { return impl_->multiplies(dtype); }
bool Linear::pairs_are_fastest() const { return impl_->pairs_are_fastest(); }
bool Linear::keeps(const LinearShape& shape) const { return impl_->keeps(shape); }
bool Linear::fuses_gates(const LinearShape& shape) const { return impl_->may_gate(shape, kMaxRows); }
std::string Linear::implementation(const LinearShape& shape, int64_t rows, bool accumulate, bool bias) const {
  return impl_->implementation(shape, rows, accumulate, bias);
}
int64_t Linear::group_padding(int64_t groups) { return groups * (PackedProducts::kExactRows - 1); }
int64_t Linear::padded_rows(int64_t n) { return PackedProducts::padded_rows(n); }
size_t Linear::packed_bytes(const LinearShape& shape) const { return impl_->packed_bytes(shape); }
void Linear::pack(const LinearShape& shape, const RowReader& rows, void* to) const { impl_->pack(shape, rows, to); }
void Linear::multiply(const LinearArgs& args, ThreadPool& pool) const {
  if (args.n > 0) impl_->multiply(args, pool);
}
bool Linear::multiply_gated(const GatedLinearArgs& args, ThreadPool& pool) const {
  return args.product.n == 0 || impl_->multiply_gated(args, pool);
}
void Linear::multiply_groups(const GroupedLinearArgs& args, ThreadPool& pool) const {
  impl_->multiply_groups(args, pool);
}
const Product& Linear::whole_product(const LinearShape& shape, int64_t rows) const {
  return impl_->whole_product(shape, rows);
}
void Linear::multiply_whole(const Product& product, const void* weight, const void* in, float* out, int thread) const {
  impl_->multiply_whole(product, weight, in, out, thread);
}
bool Linear::multiply_gated_groups(const GatedGroupedLinearArgs& args, ThreadPool& pool) const {
  return impl_->multiply_gated_groups(args, pool);
}
void Linear::multiply_heads(const HeadLinearArgs& args, ThreadPool& pool) const { impl_->multiply_heads(args, pool); }

}  // namespace sluice::kernels::cpu
