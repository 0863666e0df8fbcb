// Attention over the latent cache on the CPU: all heads of a query row share its keys, so scores and sums are matrix
// products (plain_products.h) of heads times positions.
#pragma once

#include <vector>

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
    std::vector<char> queries;  // [rows * heads, width] of dtype
    std::vector<char> keys;     // [kPositions, width] of dtype
    std::vector<float> scores;  // [rows * heads, kPositions]
    std::vector<char> weights;  // likewise, of dtype
    std::vector<float> sums;    // [rows * heads, width]
    std::vector<float> state;   // [rows * heads, 2] running maximum and total
  };

  void plan(const LatentAttentionArgs& args);
  void attend(const LatentAttentionArgs& args, const Piece& piece, int thread);
  void merge(const LatentAttentionArgs& args, size_t first, size_t last) const;

  const Simd& simd_;
  const PlainProducts products_;
  std::vector<Scratch> scratch_;
  std::vector<Piece> pieces_;
  std::vector<size_t> cut_;  // the first pieces of rows that are cut
  std::vector<float> partials_;
};

}  // namespace sluice::kernels::cpu
