// The radix tree under PrefixIndex: one writer thread, any number of lock-free readers. See prefix_index.h for what it
// is for; this file is how.
//
//            root ── "You are a " [w1 w2] ─┬─ "helpful bot. Hi" [w1]
//                                          └─ "pirate. Ahoy" [w2]
//
// A node's edge text never changes and its child and holder tables are replaced, not edited (holder tables also grow in
// place), so a reader that follows atomic pointers under an EpochGuard always sees a consistent tree. A worker that
// holds a node holds all its ancestors. Leaves are linked in the order of their last use: the oldest goes first when
// the budget is full.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "routing/epoch.h"
#include "routing/prefix_index.h"

namespace sluice::routing {

// The current generation of each worker, readable without a lock; worker numbers are dense and never reused.
class Generations {
 public:
  ~Generations();
  uint32_t of(uint32_t worker) const;
  void bump(uint32_t worker);

 private:
  static constexpr uint32_t kChunk = 1024;
  static constexpr uint32_t kChunks = 4096;
  using Chunk = std::array<std::atomic<uint32_t>, kChunk>;

  std::array<std::atomic<Chunk*>, kChunks> chunks_{};
};

class PrefixTree {
 public:
  PrefixTree(size_t budget_bytes, size_t max_bytes_per_worker);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // Any thread.
  PrefixMatch match(std::string_view text) const;
  Generations& generations() { return generations_; }

  // Writer thread only, all below. `tick` is the time of use in any unit that does not decrease. False if there was no
  // room: everything evictable was in use by readers.
  bool insert(std::string_view text, Holder holder, uint32_t tick);
  // Removes the claims of generations that are over, and the nodes that nobody holds any more.
  void sweep();

  size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  size_t nodes() const { return nodes_.load(std::memory_order_relaxed); }
  size_t worker_bytes(uint32_t worker) const { return worker < worker_bytes_.size() ? worker_bytes_[worker] : 0; }
  uint64_t evictions_budget() const { return evictions_budget_.load(std::memory_order_relaxed); }
  uint64_t evictions_size() const { return evictions_size_.load(std::memory_order_relaxed); }
  uint64_t evictions_worker() const { return evictions_worker_.load(std::memory_order_relaxed); }

 private:
  struct Node;
  struct Children;
  struct Claim;
  struct Claims;

  void* allocate(size_t bytes);
  void retire(void* memory);
  Node* new_node(std::string_view edge, Node* parent);
  Children* with_child(const Children* old, Node* child);
  void replace_child(Node* parent, Node* old, Node* with);
  void remove_leaf(Node* leaf);
  void touch_leaf(Node* node);
  void unlink(Node* node);
  // The node that ends after `length` bytes of `node`'s edge: itself or a new one that takes its place.
  Node* split(Node* node, size_t length);
  void claim(Node* node, Holder holder, uint32_t tick);
  bool drop_claim(Node* node, uint32_t worker);
  size_t claim_growth(const Node* node) const;
  bool make_room(size_t bytes, const Node* keep);
  void reclaim();
  void trim_worker(uint32_t worker);
  template <class Visit>
  void post_order(Visit visit);

  const size_t budget_bytes_;
  const size_t max_bytes_per_worker_;
  Generations generations_;
  Node* root_ = nullptr;  // constant after construction

  // Writer thread.
  RetireList retired_;
  Node* oldest_ = nullptr;  // leaves by last use, oldest first
  Node* newest_ = nullptr;
  std::vector<size_t> worker_bytes_;  // edge bytes of the nodes that each worker holds

  // Written by the writer, read by anybody.
  std::atomic<size_t> bytes_{0};
  std::atomic<size_t> nodes_{0};
  std::atomic<uint64_t> evictions_budget_{0};
  std::atomic<uint64_t> evictions_size_{0};
  std::atomic<uint64_t> evictions_worker_{0};
};

}  // namespace sluice::routing
