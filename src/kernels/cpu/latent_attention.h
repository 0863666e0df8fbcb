// Attention over the latent cache on the CPU: all heads of a query row share its keys, so scores and sums are matrix
// products of heads times positions. Matrix tiles take cached rows as they lie for scores, so only what is summed is
// brought into another form. Else, where oneDNN's packed form is known, rows are brought into it for both as they are
// read, or oneDNN does so in each product.
#pragma once

#include <vector>

#include "kernels/cpu/memory.h"
#include "kernels/cpu/packed_products.h"
#include "kernels/cpu/plain_products.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::kernels::cpu {

class LatentAttention {
 public:
  // `threads` of the pool that run() is called with.
  LatentAttention(int threads, const Simd& simd);

  // By the rank's thread. The result does not depend on the number of threads.
  void run(const LatentAttentionArgs& args, ThreadPool& pool);

 private:
  // Some query rows of one sequence, over the cached positions [begin, end).
  struct Piece {
    int64_t sequence, first_row, rows;
    int64_t begin, end;
    float* partial;  // [rows * heads, latent + 2] where the sequence is cut: sums, maximum, total; else null
  };
  // A thread's memory.
  struct Scratch {
    std::vector<char> queries;      // [rows * heads, width] of dtype
    std::vector<CacheLine> keys;    // [kPositions, width] of dtype; packed for scores
    std::vector<CacheLine> values;  // packed for sums
    std::vector<CacheLine> rows;    // [kPackRows + 1, width] of dtype: as they are packed, and zeros
    std::vector<CacheLine> pairs;   // of tiles: queries as score_rows() takes them
    std::vector<CacheLine> copied;  // of tiles: [kScoreRows, width] that do not lie evenly
    std::vector<float> scores;      // [rows * heads, kPositions]
    std::vector<char> weights;      // likewise, of dtype
    std::vector<float> sums;        // [rows * heads, width]
    std::vector<float> state;       // [rows * heads, 2] running maximum and total
  };

  void plan(const LatentAttentionArgs& args);
  void attend(const LatentAttentionArgs& args, const Piece& piece, int thread);
  // Positions that are scored and summed at once.
  struct Block {
    int64_t count;
    int64_t padded;   // with zeros behind, so many
    int64_t visible;  // positions from its first one on that are there, the next blocks' included
  };
  // kScoreRows rows of the cache.
  struct EvenRows {
    const char* first;
    int64_t bytes_apart;
  };
  // How products are made: of rows as they are read, packed, or by tiles.
  enum class Way { kPlain, kPacked, kTiles };

  // Of the slots of a block.
  void read(const LatentAttentionArgs& args, const int32_t* slots, const Block& block, Scratch& own) const;
  // `count` of these slots, zeros behind. Tiles take rows that are evenly apart; of others there is a copy.
  EvenRows even_rows(const LatentAttentionArgs& args, const int32_t* slots, int64_t count, Scratch& own) const;
  // Scores of m rows over a block, and its values as sum() takes them.
  void score(const LatentAttentionArgs& args, const int32_t* slots, const Block& block, int64_t m, Scratch& own,
             int thread) const;
  void score_by_tiles(const LatentAttentionArgs& args, const int32_t* slots, const Block& block, int64_t m,
                      Scratch& own) const;
  void sum(const LatentAttentionArgs& args, const Block& block, int64_t m, bool accumulate, Scratch& own,
           int thread) const;
  // Columns that are summed: the rotary ones as well where rows that follow each other are faster than fewer columns.
  int64_t summed(const LatentAttentionArgs& args) const {
    return way_ == Way::kTiles ? args.latent : args.latent + args.rotary;
  }
  void merge(const LatentAttentionArgs& args, size_t first, size_t last) const;
  // Makes the products of pieces_ before the pool runs. False: packed ones would not write to where their results
  // belong.
  bool prepare(const LatentAttentionArgs& args, bool packed);
  // Of m rows and `padded` positions, packed.
  const Product& scores_product(int64_t m, int64_t width, int64_t padded) const;
  const Product& sums_product(int64_t m, int64_t width, int64_t padded, bool accumulate) const;
  // True if the form of such rows is known.
  bool packs(int64_t width, DType dtype);

  const Simd& simd_;
  const PlainProducts products_;
  const PackedProducts packed_products_;
  int64_t packed_width_ = 0;  // of rows in bf16 that are known to be
  int64_t plain_width_ = 0;   // likewise not to be
  Way way_ = Way::kPlain;     // of this run
  std::vector<Scratch> scratch_;
  std::vector<Piece> pieces_;
  std::vector<size_t> cut_;  // the first pieces of rows that are cut
  std::vector<float> partials_;
};

}  // namespace sluice::kernels::cpu
