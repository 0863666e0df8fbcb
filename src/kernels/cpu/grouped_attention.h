// Attention over a paged cache of keys and values on the CPU: of many query rows by matrix products, in which the rows
// of the heads that share a key and value head are those of one product; of few by the loops of simd.inc.
#pragma once

#include <vector>

#include "kernels/cpu/block_attention.h"
#include "kernels/cpu/plain_products.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::kernels::cpu {

class GroupedAttention {
 public:
  // `threads` of the pool that run() is called with. `own_products`: those of `simd` are as fast as any
  // (pairs_are_fastest()).
  GroupedAttention(int threads, const Simd& simd, bool own_products);

  // By the rank's thread. In bf16, queries and weights of products are rounded to it. The result does not depend on the
  // number of threads.
  void run(const AttentionArgs& args, ThreadPool& pool);

 private:
  // A thread's memory.
  struct Scratch {
    std::vector<char> queries;      // [rows, group, dim] of dtype
    std::vector<CacheLine> keys;    // [kPositions, dim] of dtype, or packed
    std::vector<CacheLine> values;  // likewise
    std::vector<CacheLine> rows;    // [kPackRows + 1, dim] of dtype: as they are packed, and zeros
    std::vector<CacheLine> sums;    // [rows, group, dim]
    std::vector<float> state;
    BlockAttention::Scratch products;
    std::vector<float> loops;  // of Simd::attention
  };
  // Pieces of the same rows over other positions.
  struct Cut {
    size_t first, last;
  };
  // Pieces of a call, and which of them are parts of one.
  struct Plan {
    std::vector<AttentionPiece> pieces;
    std::vector<Cut> cuts;
    std::vector<float> partials;

    void clear();
    // `whole` in at most `wanted` parts that meet at multiples of `step`, none but the last shorter than kShortestCut.
    void add(const AttentionPiece& whole, int64_t wanted, int64_t step);
    // Memory for the parts' results, `floats` for each row and KV head.
    void place_partials(int64_t floats);
  };

  bool has_many_rows(const AttentionArgs& args, int64_t sequence) const;
  void plan_many(const AttentionArgs& args);
  void plan_few(const AttentionArgs& args);
  void prepare(const AttentionArgs& args);      // the products of many_
  bool packs(const AttentionArgs& args) const;  // keys and values of the products
  void multiply(const AttentionArgs& args, const AttentionPiece& piece, int thread);
  // The positions from `base` on that a piece's rows see, kPositions at most.
  PositionBlock read(const AttentionArgs& args, const AttentionPiece& piece, int64_t base, Scratch& own) const;
  void merge(const AttentionArgs& args, const Plan& plan, ThreadPool& pool) const;
  void merge(const AttentionArgs& args, const Plan& plan, const Cut& cut) const;

  const Simd& simd_;
  const bool own_products_;
  const PlainProducts products_;
  std::vector<Scratch> scratch_;
  Plan many_, few_;
};

}  // namespace sluice::kernels::cpu
