// Attention over keys and values that are expanded from the latent cache, on the CPU: some positions at a time are
// gathered and expanded for a few heads, and scores and sums are matrix products of query rows times positions.
#pragma once

#include <vector>

#include "kernels/cpu/block_attention.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/plain_products.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"
#include "kernels/thread_pool.h"

namespace sluice::kernels::cpu {

class ExpandedAttention {
 public:
  // `threads` of the pool that run() is called with. `linear` outlives this.
  ExpandedAttention(int threads, const Simd& simd, const Linear& linear);

  // By the rank's thread. The result does not depend on the number of threads.
  void run(const ExpandedAttentionArgs& args, ThreadPool& pool);

 private:
  // Some query rows of one sequence, for the heads [first_head, last_head).
  struct Piece {
    int64_t sequence, first_row, rows;
    int64_t first_head, last_head;
  };
  // A thread's memory.
  struct Scratch {
    std::vector<char> queries;                          // [heads, rows, nope + rotary] of dtype
    std::vector<char> latents;                          // [positions, latent] of dtype
    std::vector<char> rotary;                           // [positions, rotary] of dtype
    std::vector<float> expanded;                        // [positions, nope or value]
    std::vector<CacheLine> keys, values;                // [positions, nope + rotary] and [positions, value] of dtype
    std::vector<CacheLine> packed_keys, packed_values;  // the same, for our own products
    std::vector<float> sums;                            // [heads, rows, value]
    std::vector<float> state;                           // [heads, rows, 2] running maximum and total
    BlockAttention::Scratch products;
  };
  struct Block;

  void prepare(const ExpandedAttentionArgs& args);      // the products of pieces_
  bool packs(const ExpandedAttentionArgs& args) const;  // what is expanded
  void attend(const ExpandedAttentionArgs& args, const Piece& piece, int thread);
  void gather(const ExpandedAttentionArgs& args, const Block& block, Scratch& own) const;
  // Without its place among the positions.
  PositionBlock expand(const ExpandedAttentionArgs& args, const Block& block, int64_t head, Scratch& own,
                       int thread) const;

  const Simd& simd_;
  const Linear& linear_;
  const PlainProducts products_;
  std::vector<Scratch> scratch_;
  std::vector<Piece> pieces_;
  std::vector<const Product*> key_products_, value_products_;  // of 1, 2, ... times kPositionStep positions
};

}  // namespace sluice::kernels::cpu
