// Which prefixes have their keys and values in the pool: a compressed trie on token ids, one per namespace (extra_key),
// so that a request computes only what no earlier request has computed. Page size 1: any length can match.
//
//   "You are a" [5 9 2 7]             a node holds a run of tokens and the slot of each one;
//     ├── "cat" [3]                   a match that ends inside a run splits the node there
//     └── "dog that barks" [8 1 4]
//
// The tree owns the slots of its nodes. A request locks the node where its match ends, which protects the path up to
// the root; what nobody has locked can be evicted, least recently used leaves first.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/kv_pool.h"

namespace sluice::engine {

// Used by one thread.
class RadixCache {
 public:
  class Node;

  // Evicted slots go back to `pool`, which outlives the cache.
  explicit RadixCache(KvPool& pool);
  ~RadixCache();

  struct Match {
    Node* node = nullptr;        // where the match ends, for lock(); null when nothing matched
    std::vector<int32_t> slots;  // of the matched tokens
  };
  // The longest prefix of `tokens` that is held. Splits a node when the match ends inside it, and makes the path the
  // most recently used. The node is valid until the next insert(), evict() or reset() unless it is locked.
  Match match(std::string_view extra_key, std::span<const int32_t> tokens);

  // What match() would find, without changing anything. `visit` gets each node of the path with the number of its
  // tokens that match, from the root on.
  int64_t peek(std::string_view extra_key, std::span<const int32_t> tokens,
               const std::function<void(const Node*, int64_t)>& visit = {}) const;

  // Gives `slots` (one per token) to the tree. Returns how many leading tokens were held already: for those the tree
  // keeps its own slots and the caller still owns the ones that it passed, unless they are the same.
  int64_t insert(std::string_view extra_key, std::span<const int32_t> tokens, std::span<const int32_t> slots);

  // Protects the path from `node` to its root from eviction. Counted: each lock needs one unlock. Null is no path.
  void lock(Node* node);
  void unlock(Node* node);

  // Frees at least `tokens` slots if that many are evictable, otherwise all that are. Returns how many were freed.
  int64_t evict(int64_t tokens);
  // Frees everything; nothing may be locked.
  void reset();

  // Tokens that nobody has locked, and tokens that somebody has.
  int64_t evictable() const { return evictable_; }
  int64_t locked() const { return locked_; }

  // For planning without changing anything.
  static bool is_locked(const Node* node);
  static int64_t locks(const Node* node);
  static int64_t length(const Node* node);
  static const Node* parent(const Node* node);  // null for the topmost node of a path

  // Walks the whole tree and checks every count; for tests.
  void check_invariants() const;

 private:
  using Namespaces = std::map<std::string, std::unique_ptr<Node>, std::less<>>;

  Node* split(Node* node, size_t at);
  void touch(Node* node);
  void leaf_changed(Node* node);
  void remove(Node* leaf);

  KvPool& pool_;
  Namespaces roots_;  // a root holds no tokens; it goes with its last child
  // Leaves that nobody has locked, by last use. Ticks of two leaves are never equal: one tick goes to one path, and a
  // path has one leaf.
  std::set<std::pair<uint64_t, Node*>> evictable_leaves_;
  uint64_t tick_ = 0;
  int64_t evictable_ = 0;
  int64_t locked_ = 0;
};

}  // namespace sluice::engine
