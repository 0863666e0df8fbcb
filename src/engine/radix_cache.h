// Which prefixes have their keys and values in the pool: a compressed trie on token ids, one per namespace (extra_key),
// so that a request computes only what no earlier request has computed. It holds, matches and splits whole pages.
//
//   "You are a" [5 9 2 7]             a node holds a run of tokens and the slot of each one (here pages of one token);
//     ├── "cat" [3]                   a match that ends inside a run splits the node there
//     └── "dog that barks" [8 1 4]
//
// The tree owns the slots of its nodes. A request locks the node where its match ends, which protects the path up to
// the root; what nobody has locked can be evicted, leaf by leaf, in the order of RadixOptions::eviction.
//
// Models with states of whole sequences (lightning attention) can go on only from a position whose state was kept:
// keep_state() gives a node a row for it, and then a match ends where such a row is.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/kv_pool.h"
#include "protocol/kv_events.h"

namespace sluice::engine {

struct RadixOptions {
  enum class Eviction : uint8_t {
    kLeastRecentlyUsed,
    kLeastFrequentlyUsed,  // by matches; the least recently used of equals
  };
  Eviction eviction = Eviction::kLeastRecentlyUsed;
  bool record_events = false;
  // Rows for kept states, [first_state_row, first_state_row + state_rows). None: matches end anywhere.
  int32_t first_state_row = 0;
  int32_t state_rows = 0;
};

// Used by one thread.
class RadixCache {
 public:
  class Node;

  // Evicted slots go back to `pool`, which outlives the cache.
  explicit RadixCache(KvPool& pool, const RadixOptions& options = {});
  ~RadixCache();

  struct Match {
    Node* node = nullptr;        // where the match ends, for lock(); null when nothing matched
    std::vector<int32_t> slots;  // of the matched tokens
    int32_t state_row = -1;      // the state after them, if states are kept
  };
  // The longest prefix of `tokens` that is held. Splits a node when the match ends inside it, and makes the path the
  // most recently used. The node is valid until the next insert(), evict() or reset() unless it is locked.
  Match match(std::string_view extra_key, std::span<const int32_t> tokens);

  struct PathStep {
    const Node* node = nullptr;
    int64_t tokens = 0;  // of the node that match
  };
  // The length that match() would find, without changing anything. `path` gets its nodes from the root on.
  int64_t peek(std::string_view extra_key, std::span<const int32_t> tokens,
               std::vector<PathStep>* path = nullptr) const;

  struct Inserted {
    int64_t held = 0;     // leading tokens that were held already
    Node* end = nullptr;  // where the tokens end; null for none
  };
  // Gives `slots` (one per token, whole pages) to the tree. For tokens that it held already it keeps its own slots, and
  // the caller still owns the ones that it passed, unless they are the same.
  Inserted insert(std::string_view extra_key, std::span<const int32_t> tokens, std::span<const int32_t> slots);

  // Protects the path from `node` to its root from eviction. Counted: each lock needs one unlock. Null is no path.
  void lock(Node* node);
  void unlock(Node* node);

  // The row into which to copy the state after `node`, or nothing if it has one. Where rows run out, the node used
  // least recently loses its row.
  std::optional<int32_t> keep_state(Node* node);

  // Frees at least `tokens` slots if that many are evictable, otherwise all that are. Returns how many were freed.
  int64_t evict(int64_t tokens);
  // Frees everything; nothing may be locked.
  void reset();

  // Tokens that nobody has locked, and tokens that somebody has.
  int64_t evictable() const { return evictable_; }
  int64_t locked() const { return locked_; }

  // What was stored, removed and cleared since the last call, in that order (RadixOptions::record_events). One event
  // per stored page.
  std::vector<protocol::KvEvent> take_events();

  // The slots of the tokens up to the end of `node`; `to` has a place for each.
  static void copy_slots(const Node* end, std::span<int32_t> to);
  // For planning without changing anything.
  static int64_t locks(const Node* node);
  static int64_t length(const Node* node);
  static const Node* parent(const Node* node);  // null for the topmost node of a path

  // Walks the whole tree and checks every count; for tests.
  void check_invariants() const;

 private:
  using Namespaces = std::map<std::string, std::unique_ptr<Node>, std::less<>>;
  using Order = std::tuple<uint64_t, uint64_t, Node*>;  // uses that count, last use

  Order order_of(Node* node) const;
  void touch(Node* node, bool counts);
  void leaf_changed(Node* node);
  Node* split(Node* node, int64_t at);
  void remove(Node* leaf);
  void drop_state(Node* node);
  void record_stored(Node& node, std::string_view extra_key);
  void record_removed(const Node& node);

  KvPool& pool_;
  const RadixOptions options_;
  const size_t page_;
  Namespaces roots_;                  // a root holds no tokens; it goes with its last child
  std::set<Order> evictable_leaves_;  // that nobody has locked, the first to go first
  std::vector<Node*> with_state_;
  std::vector<int32_t> free_state_rows_;
  std::vector<protocol::KvEvent> events_;
  uint64_t tick_ = 0;
  int64_t evictable_ = 0;
  int64_t locked_ = 0;
};

}  // namespace sluice::engine
