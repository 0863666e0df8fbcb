// Attention of many query rows over a paged cache of keys and values on the CPU. The rows of the heads that share a key
// and value head are those of one product.
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
  // `threads` of the pool that run() is called with.
  GroupedAttention(int threads, const Simd& simd);

  // True if a sequence has so many rows that products are faster than the loops of simd.inc.
  static bool pays(const AttentionArgs& args, int64_t sequence);
  // The sequences for which it pays, by the rank's thread. In bf16 queries and weights are rounded to it. The result
  // does not depend on the number of threads.
  void run(const AttentionArgs& args, ThreadPool& pool);

 private:
  // Some query rows of one sequence for the heads of one key and value head.
  struct Piece {
    int64_t sequence, first_row, rows, kv_head;
  };
  // A thread's memory.
  struct Scratch {
    std::vector<char> queries;  // [rows, group, dim] of dtype
    std::vector<char> keys;     // [kPositions, dim] of dtype
    std::vector<char> values;   // likewise
    std::vector<float> sums;    // [rows, group, dim]
    std::vector<float> state;
    BlockAttention::Scratch products;
  };

  void attend(const AttentionArgs& args, const Piece& piece, int thread);

  const Simd& simd_;
  const PlainProducts products_;
  std::vector<Scratch> scratch_;
  std::vector<Piece> pieces_;
};

}  // namespace sluice::kernels::cpu
