// Which workers hold which KV blocks, as their engines say (protocol/kv_events): knowledge in the place of the belief
// that prefix_index.h keeps. Engines name blocks by hashes of their own, with seeds of their own; here a block is named
// by a hash over its tokens and all that came before them, learned from the events, so that a prompt's tokens can be
// looked up for all workers at once.
//
//          tokens of a prompt    [ 7 9 4 2 | 1 1 3 8 | 5 6 ]       the incomplete block has no name
//          names                    k1         k2 = extend(k1, {1 1 3 8})
//          holders                {w1 w2}      {w2}                 -> w2: two blocks, w1: one
//
// One thread writes, any number read without a lock. Memory is a hard budget; what has no room is refused and counted.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "routing/epoch.h"
#include "routing/fixed_heap.h"

namespace sluice::routing {

using BlockName = uint64_t;

// Names of the whole blocks of a prompt, first to last; `block_size` in tokens, more than 0.
void name_blocks(std::span<const int32_t> tokens, size_t block_size, std::vector<BlockName>& names);

class BlockIndex {
 public:
  // At least 64 KiB.
  explicit BlockIndex(size_t budget_bytes);
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  struct Depth {
    uint32_t worker = 0;
    uint32_t blocks = 0;  // from the first on, without a gap
  };
  // Any thread, no wait. Everybody who holds the first block, in no order; `found` is cleared before. Of every `stride`
  // blocks only the last one is looked at as long as those that hold it stay the same: a cache that gives up a block
  // only after all that follow on it loses nothing by that.
  void match(std::span<const BlockName> names, std::vector<Depth>& found, size_t stride = 1) const;

  // Writer thread only, all below. `hash`: of the engine.
  enum class Stored : uint8_t {
    kNew,
    kKnown,     // it was held already
    kNoParent,  // the block before it is not known: what it holds cannot be named
    kConflict,  // the engine had said something else of that hash: the newer word counts
    kFull,
  };
  Stored store(uint32_t worker, uint64_t hash, std::optional<uint64_t> parent, std::span<const int32_t> tokens);
  // False if it was not held.
  bool remove(uint32_t worker, uint64_t hash);
  void clear(uint32_t worker);
  size_t blocks_of(uint32_t worker) const;

  // Accounted: never more than the budget. Any thread.
  size_t bytes() const { return heap_.used_bytes() + held_.load(std::memory_order_relaxed) * kHeldBytes; }
  // Pairs of a worker and a block that it holds. Any thread.
  size_t held() const { return held_.load(std::memory_order_relaxed); }

 private:
  using Ref = FixedHeap::Ref;
  struct Node;
  static constexpr size_t kHeldBytes = 56;  // an entry of Names: node, its allocator's overhead, its bucket
  using Names = std::unordered_map<uint64_t, BlockName>;  // by hash of the engine

  std::atomic<Ref>& bucket_of(BlockName name) const;
  // The reference that leads to the block's node, or to 0.
  std::atomic<Ref>& place_of(BlockName name) const;
  const Node* find(BlockName name) const;
  static size_t keep_holders(const Node* node, std::span<Depth> of);
  bool hold(uint32_t worker, BlockName name);
  void release(uint32_t worker, BlockName name);
  Ref allocate(size_t bytes);

  const size_t budget_;
  FixedHeap heap_;
  Ref buckets_ = 0;  // constant after construction
  uint64_t mask_ = 0;
  std::atomic<size_t> held_{0};

  // Writer thread.
  RetireList retired_;
  std::unordered_map<uint32_t, Names> names_;  // by worker
};

}  // namespace sluice::routing
