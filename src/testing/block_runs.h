// A set of chains of blocks that knows a prompt of thousands of blocks by a few entries. A name stands for a block and
// for all that comes before it, so that chains with one name in common are alike up to there and the set is a tree.
// What was only ever put in together is one run, cut where chains part:
//
//   chains    1 2 3 4 5    1 2 3 8 9          runs    1 2 3 ─┬─ 4 5
//                                                            └─ 8 9
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice::testing {

class BlockRuns {
 public:
  using Chain = std::span<const uint64_t>;

  // How many of the chain's blocks are in the set, from the first on.
  size_t match(Chain chain) const;
  // Blocks in the set.
  size_t size() const { return size_; }

  // The chain counts once more.
  void add(Chain chain);
  // Once less than it was added; blocks that nobody counts any more go.
  void remove(Chain chain);

  // The chain is in the set, and the most recently used in it; of its blocks the last counts as used first.
  void use(Chain chain);
  // The least recently used go, of a run the last first, until no more than `size` blocks are left. Of a set that only
  // use() has filled no block goes before those behind it.
  void shrink_to(size_t size);
  void clear();

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Run {
    std::vector<uint64_t> names;  // empty: it is free
    int64_t count = 0;
    uint32_t older = kNone, newer = kNone;
  };
  struct Slot {
    uint64_t name = 0;  // the first of the run
    uint32_t run = kNone;
  };

  static size_t common(const Run& run, Chain rest);
  // Cuts and makes runs so that those of path_ are the chain and nothing else.
  void lay(Chain chain);
  uint32_t make(Chain names);
  void split(uint32_t run, size_t at);
  void drop(uint32_t run);
  void link(uint32_t run, uint32_t older);
  void unlink(uint32_t run);

  size_t home(uint64_t name) const { return (name * 0x9e3779b97f4a7c15) >> shift_; }
  uint32_t find(uint64_t name) const;
  void put(uint64_t name, uint32_t run);
  void take(uint64_t name);

  std::vector<Run> runs_;
  std::vector<uint32_t> free_;  // of runs_
  size_t size_ = 0;
  uint32_t oldest_ = kNone, newest_ = kNone;
  std::vector<uint32_t> path_;  // what lay() found
  // Runs by their first name: open addressing, at most half full.
  std::vector<Slot> slots_ = std::vector<Slot>(16);
  int shift_ = 60;  // 64 less the bits of a place in slots_
  size_t used_slots_ = 0;
};

}  // namespace sluice::testing
