// The radix tree under PrefixIndex: one writer thread, any number of lock-free readers. See prefix_index.h for what it
// is for; this file is how.
//
//            root ── "You are a " [w1 w2] ─┬─ "helpful bot. Hi" [w1]
//                                          └─ "pirate. Ahoy" [w2]
//
// A node's edge text never changes, and neither does its place in the tree: what would change it makes a new node.
// Tables of children and of claims grow in place while they have room, and entries that went are marked and not moved.
// So a reader that follows atomic references under an EpochGuard always sees a consistent tree. A worker that holds a
// node holds all its ancestors.
//
// Leaves stand in a queue: those at its old end go first when the budget is full, and one that was used since it came
// into the queue goes back to the new end instead. So a use costs no more than a mark.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "routing/epoch.h"
#include "routing/fixed_heap.h"
#include "routing/generations.h"
#include "routing/prefix_index.h"

namespace sluice::routing {

class PrefixTree {
 public:
  PrefixTree(size_t budget_bytes, size_t max_bytes_per_worker);
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // Any thread.
  PrefixMatch match(std::string_view text) const;
  Generations& generations() { return generations_; }
  const Generations& generations() const { return generations_; }

  // Writer thread only, all below. `tick` is the time of use in any unit that does not decrease; `limit` bounds the
  // bytes of text of this worker, as max_bytes_per_worker those of all. False if there was no room: everything
  // evictable was in use by readers. `held`, unless it is null: how many bytes of the text the holder had before.
  // `place`: where match() has found that text, which is not compared up to there if the node still stands.
  bool insert(std::string_view text, Holder holder, uint32_t tick, size_t limit = SIZE_MAX, size_t* held = nullptr,
              const PrefixPlace& place = {});
  // Those texts, at most kExpected, are inserted next: what that looks at is fetched from memory for all at the same
  // time, where inserts would wait for it one after the other.
  static constexpr size_t kExpected = 8;
  struct Expected {
    std::string_view text;
    size_t known = 0;  // PrefixPlace::bytes: so far it is not compared
  };
  void expect(std::span<const Expected> inserts) const;
  // The text that was inserted for the holder did not come to be held: its claims on what lies beyond the first `kept`
  // bytes end, unless longer texts of it went through there. Returns how much such ones leave it, 0 if there are none.
  size_t withdraw(std::string_view text, Holder holder, size_t kept);
  // Removes the claims of generations that are over and those last used before the tick `oldest`, and the nodes that
  // nobody holds any more. Returns the last use of the claim that is unused the longest, kNever if none is left.
  static constexpr uint32_t kNever = ~uint32_t{0};
  uint32_t sweep(uint32_t oldest = 0);
  // Bytes of text per worker, and the prefixes that most inserts came through, at most `most` of them.
  PrefixIndexReport report(size_t most) const;

  // Accounted: never more than the budget.
  size_t bytes() const { return heap_.used_bytes(); }
  size_t nodes() const { return nodes_.load(std::memory_order_relaxed); }
  size_t worker_bytes(uint32_t worker) const { return worker < worker_bytes_.size() ? worker_bytes_[worker] : 0; }
  uint64_t evictions_budget() const { return evictions_budget_.load(std::memory_order_relaxed); }
  uint64_t evictions_size() const { return evictions_size_.load(std::memory_order_relaxed); }
  uint64_t evictions_worker() const { return evictions_worker_.load(std::memory_order_relaxed); }
  uint64_t evictions_age() const { return evictions_age_.load(std::memory_order_relaxed); }

 private:
  struct Claim;
  struct Node;
  struct Children;
  using Ref = FixedHeap::Ref;
  // Where in the queue the claims of a worker with too many are looked for next.
  struct Visit {
    uint32_t worker;
    Ref at;  // 0: at the old end
  };

  Node* node_at(Ref ref) const { return heap_.at<Node>(ref); }
  std::atomic<Ref>& next_table(Ref full_table) const;
  template <class Function>
  bool any_claim(const Node* node, Function visit) const;
  template <class Function>
  void each_claim(const Node* node, Function visit) const;
  bool live(const Claim& claim, uint32_t* worker) const;
  bool held(const Node* node) const;
  void collect(const Node* node, PrefixMatch* match) const;
  void collect_parts(const Node* node, size_t bytes, PrefixMatch* match) const;
  Node* child_of(const Node* node, char first) const;
  bool claims_below(const Node* node, uint32_t worker) const;
  Claim* claim_of(const Node* node, uint32_t worker) const;
  bool unheld(const Node* node) const;
  size_t known_bytes(std::string_view text, const PrefixPlace& place) const;
  uint32_t last_use(const Node* node) const;
  PrefixIndexReport::Prefix describe(const Node* node, size_t bytes, size_t children) const;

  // Writer thread, all below. Those that allocate give back null or false when there is no room, and then nothing has
  // changed but for what was evicted. `keep` is not evicted.
  Ref allocate(size_t bytes, const Node* keep);
  bool evict_oldest(const Node* keep);
  Node* new_node(std::string_view edge, const Node* keep);
  Children* new_children(Ref block);
  bool add_child(Node* parent, Node* child);
  void move_children(Node* parent, Ref block);
  void remove_child(Node* parent, Node* child);
  Node* add_leaf(Node* parent, std::string_view edge, Holder holder, uint32_t tick);
  void remove_leaf(Node* leaf);
  // The node that ends after `length` bytes of `node`'s edge: a new one in its place, above one with the rest.
  Node* split(Node* node, size_t length);
  // `had`: whether the holder had it before.
  bool claim(Node* node, Holder holder, uint32_t tick, bool* had);
  Claim* new_claim(Node* node, uint32_t expected, const Node* keep);
  template <class Function>
  void each_table(Node* node, Function visit);
  void end_claim(Node* node, Claim& claim);
  void drop_of_full(Node* node, Claim& claim);
  void count_bytes(uint32_t worker, size_t bytes);
  void enqueue(Node* leaf, bool as_newest);
  void dequeue(Node* node);
  void replace_in_queue(Node* node, Node* with);
  void move_visits(Node* node, Ref next);
  void trim_worker(uint32_t worker, size_t share);
  void trim_everywhere(uint32_t worker, size_t goal);
  void take_claims(Node* node, uint32_t worker, uint32_t last);
  template <class Function>
  void each_child(const Node* node, Function visit) const;
  template <class Function>
  void post_order(Function visit);

  const size_t max_bytes_per_worker_;
  const size_t max_text_;  // what is longer is cut
  Generations generations_;
  FixedHeap heap_;
  const size_t reserve_;  // of the heap: kept free, and for what waits for its readers
  Node* root_ = nullptr;  // constant after construction

  // Writer thread.
  RetireList retired_;
  Ref oldest_ = 0;  // the queue of leaves
  Ref newest_ = 0;
  std::vector<Visit> visits_;
  std::vector<size_t> worker_bytes_;        // edge bytes of the nodes that each worker holds
  uint32_t births_ = 0;                     // of nodes
  float dropped_ = 0, dropped_shared_ = 0;  // edge bytes of claims that full workers lost, older ones less

  // Written by the writer, read by anybody.
  std::atomic<size_t> nodes_{0};
  std::atomic<uint64_t> evictions_budget_{0};
  std::atomic<uint64_t> evictions_size_{0};
  std::atomic<uint64_t> evictions_worker_{0};
  std::atomic<uint64_t> evictions_age_{0};
  // As in PrefixMatch. Every match reads it: not from a line that every insert writes.
  alignas(64) std::atomic<float> shared_drops_{0};
};

}  // namespace sluice::routing
