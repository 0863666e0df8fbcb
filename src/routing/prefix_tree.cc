#include "routing/prefix_tree.h"

#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/check.h"

namespace sluice::routing {

Generations::~Generations() {
  for (auto& chunk : chunks_) delete chunk.load(std::memory_order_relaxed);
}

uint32_t Generations::of(uint32_t worker) const {
  if (worker / kChunk >= kChunks) return 0;
  const Chunk* chunk = chunks_[worker / kChunk].load(std::memory_order_acquire);
  return chunk == nullptr ? 0 : (*chunk)[worker % kChunk].load(std::memory_order_acquire);
}

void Generations::bump(uint32_t worker) {
  SLUICE_CHECK(worker / kChunk < kChunks, "worker number {} is beyond the {} that an index can tell apart", worker,
               kChunk * kChunks);
  auto& slot = chunks_[worker / kChunk];
  Chunk* chunk = slot.load(std::memory_order_acquire);
  if (chunk == nullptr) {
    auto fresh = std::make_unique<Chunk>();
    if (slot.compare_exchange_strong(chunk, fresh.get(), std::memory_order_acq_rel)) chunk = fresh.release();
  }
  (*chunk)[worker % kChunk].fetch_add(1, std::memory_order_acq_rel);
}

struct PrefixTree::Claim {
  uint32_t worker;
  std::atomic<uint64_t> stamp;  // generation << 32 | tick of last use

  uint32_t generation() const { return static_cast<uint32_t>(stamp.load(std::memory_order_acquire) >> 32); }
  uint32_t tick() const { return static_cast<uint32_t>(stamp.load(std::memory_order_relaxed)); }
};

// `size` claims, in no order. Grows in place up to its capacity; shrinking makes a new table.
struct PrefixTree::Claims {
  std::atomic<uint32_t> size;
  uint32_t capacity;

  Claim* data() { return reinterpret_cast<Claim*>(this + 1); }
  const Claim* data() const { return reinterpret_cast<const Claim*>(this + 1); }
  static size_t bytes(uint32_t capacity) { return sizeof(Claims) + capacity * sizeof(Claim); }
};

// Children by the first byte of their edge: `size` bytes of keys, found by memchr, after the pointers.
struct PrefixTree::Children {
  uint64_t size;

  Node** nodes() { return reinterpret_cast<Node**>(this + 1); }
  Node* const* nodes() const { return reinterpret_cast<Node* const*>(this + 1); }
  unsigned char* keys() { return reinterpret_cast<unsigned char*>(nodes() + size); }
  const unsigned char* keys() const { return reinterpret_cast<const unsigned char*>(nodes() + size); }
  static size_t bytes(size_t size) { return sizeof(Children) + size * (sizeof(Node*) + 1); }

  int find(unsigned char key) const {
    const void* hit = std::memchr(keys(), key, size);
    return hit == nullptr ? -1 : static_cast<int>(static_cast<const unsigned char*>(hit) - keys());
  }
};

struct PrefixTree::Node {
  std::atomic<Children*> children{nullptr};
  std::atomic<Claims*> claims{nullptr};
  // Writer only.
  Node* parent = nullptr;
  Node* older = nullptr;  // in the list of leaves
  Node* newer = nullptr;
  uint32_t tick = 0;  // last use by anybody
  bool listed = false;

  uint32_t edge_size = 0;  // the edge's bytes follow the node
  const char* edge_data() const { return reinterpret_cast<const char*>(this + 1); }
  std::string_view edge() const { return {edge_data(), edge_size}; }
};

namespace {

// Replaced tables wait for their readers within this allowance, which is set aside from the budget.
constexpr size_t kMaxRetiredBytes = 8192;

// What malloc really took, with its header.
size_t footprint(void* memory) { return malloc_usable_size(memory) + sizeof(size_t); }

size_t common_prefix(std::string_view a, std::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t i = 0;
  for (; i + 8 <= limit; i += 8) {
    uint64_t x, y;
    std::memcpy(&x, a.data() + i, 8);
    std::memcpy(&y, b.data() + i, 8);
    if (x != y) return i + static_cast<size_t>(__builtin_ctzll(x ^ y)) / 8;
  }
  while (i < limit && a[i] == b[i]) ++i;
  return i;
}

// `length` moved back to the start of the character that it cuts, if it cuts one (UTF-8).
size_t whole_characters(std::string_view text, size_t length) {
  while (length > 0 && length < text.size() && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80) --length;
  return length;
}

}  // namespace

PrefixTree::PrefixTree(size_t budget_bytes, size_t max_bytes_per_worker)
    : budget_bytes_(budget_bytes - 2 * kMaxRetiredBytes), max_bytes_per_worker_(max_bytes_per_worker) {
  root_ = new_node({}, nullptr);
}

PrefixTree::~PrefixTree() {
  post_order([&](Node* node) {
    std::free(node->children.load(std::memory_order_relaxed));
    std::free(node->claims.load(std::memory_order_relaxed));
    std::free(node);
  });
}

PrefixMatch PrefixTree::match(std::string_view text) const {
  PrefixMatch match;
  match.total_bytes = text.size();
  uint32_t ticks[PrefixMatch::kMaxHolders];

  const EpochGuard guard;
  const Node* node = root_;
  size_t position = 0;
  while (position < text.size()) {
    const Children* children = node->children.load(std::memory_order_seq_cst);
    if (children == nullptr) break;
    const int index = children->find(static_cast<unsigned char>(text[position]));
    if (index < 0) break;
    node = children->nodes()[index];
    const size_t common = common_prefix(node->edge(), text.substr(position));
    position += common;

    // Who holds the whole node holds the part that matched. A node whose holders are all gone does not count, and
    // neither does what lies below it.
    const Claims* claims = node->claims.load(std::memory_order_seq_cst);
    size_t found = 0;
    const uint32_t size = claims == nullptr ? 0 : claims->size.load(std::memory_order_acquire);
    for (uint32_t i = 0; i < size; ++i) {
      const Claim& claim = claims->data()[i];
      if (claim.generation() != generations_.of(claim.worker)) continue;
      const uint32_t tick = claim.tick();
      // Insertion by last use; when there are too many, the least recently used fall out.
      if (found == PrefixMatch::kMaxHolders && ticks[found - 1] >= tick) continue;
      size_t at = found < PrefixMatch::kMaxHolders ? found++ : found - 1;
      while (at > 0 && ticks[at - 1] < tick) {
        ticks[at] = ticks[at - 1];
        match.holders[at] = match.holders[at - 1];
        --at;
      }
      ticks[at] = tick;
      match.holders[at] = claim.worker;
    }
    if (found == 0) break;
    match.num_holders = static_cast<uint8_t>(found);
    match.matched_bytes = position;
    if (common < node->edge_size) break;
  }
  match.matched_bytes = whole_characters(text, match.matched_bytes);
  if (match.matched_bytes == 0) match.num_holders = 0;
  return match;
}

bool PrefixTree::insert(std::string_view text, Holder holder, uint32_t tick) {
  if (text.empty()) return true;
  text = text.substr(0, std::min(text.size(), std::min(budget_bytes_, max_bytes_per_worker_) / 4));
  // Room for the new leaf and a larger child table; what else the path may need is asked for as it is walked.
  const size_t worst = text.size() + sizeof(Node) + Children::bytes(256) + 512;
  if (!make_room(worst, nullptr)) return false;

  Node* node = root_;
  size_t position = 0;
  while (position < text.size()) {
    Children* children = node->children.load(std::memory_order_relaxed);
    const int index = children == nullptr ? -1 : children->find(static_cast<unsigned char>(text[position]));
    if (index < 0) {
      Node* leaf = new_node(text.substr(position), node);
      leaf->tick = tick;
      claim(leaf, holder, tick);
      unlink(node);  // no leaf any more
      Children* with = with_child(children, leaf);
      node->children.store(with, std::memory_order_seq_cst);
      if (children != nullptr) retire(children);
      touch_leaf(leaf);
      break;
    }
    Node* child = children->nodes()[index];
    const size_t common = common_prefix(child->edge(), text.substr(position));
    if (common < child->edge_size) {
      // The edge of the node that is split may be long: room for its copy is asked for here.
      const size_t halves = child->edge_size + 2 * sizeof(Node) + Children::bytes(257) + 256;
      if (!make_room(halves + claim_growth(child), child)) return false;
      child = split(child, common);
    }
    node = child;
    position += common;
    node->tick = tick;
    if (!make_room(claim_growth(node), node)) return false;
    claim(node, holder, tick);
    if (node->children.load(std::memory_order_relaxed) == nullptr) touch_leaf(node);
  }
  if (holder.worker < worker_bytes_.size() && worker_bytes_[holder.worker] > max_bytes_per_worker_) {
    trim_worker(holder.worker);
  }
  return true;
}

// What claim() may allocate.
size_t PrefixTree::claim_growth(const Node* node) const {
  const Claims* claims = node->claims.load(std::memory_order_relaxed);
  return claims == nullptr ? 64 : Claims::bytes(2 * claims->capacity + 2) + 64;
}

void PrefixTree::sweep() {
  post_order([&](Node* node) {
    if (node == root_) return;
    Claims* claims = node->claims.load(std::memory_order_relaxed);
    uint32_t i = 0;
    while (claims != nullptr && i < claims->size.load(std::memory_order_relaxed)) {
      const Claim& claim = claims->data()[i];
      if (claim.generation() == generations_.of(claim.worker)) {
        ++i;
        continue;
      }
      evictions_worker_.fetch_add(1, std::memory_order_relaxed);
      drop_claim(node, claim.worker);
      claims = node->claims.load(std::memory_order_relaxed);
    }
    if (claims == nullptr && node->children.load(std::memory_order_relaxed) == nullptr) remove_leaf(node);
  });
  reclaim();
}

void* PrefixTree::allocate(size_t bytes) {
  void* memory = std::malloc(bytes);
  SLUICE_CHECK(memory != nullptr, "no memory for {} bytes of the prefix index", bytes);
  bytes_.fetch_add(footprint(memory), std::memory_order_relaxed);
  return memory;
}

void PrefixTree::retire(void* memory) {
  retired_.retire(memory, footprint(memory));
  if (retired_.bytes() > kMaxRetiredBytes) reclaim();
}

PrefixTree::Node* PrefixTree::new_node(std::string_view edge, Node* parent) {
  auto* node = new (allocate(sizeof(Node) + edge.size())) Node;
  node->parent = parent;
  node->edge_size = static_cast<uint32_t>(edge.size());
  if (!edge.empty()) std::memcpy(reinterpret_cast<char*>(node + 1), edge.data(), edge.size());
  nodes_.fetch_add(1, std::memory_order_relaxed);
  return node;
}

PrefixTree::Children* PrefixTree::with_child(const Children* old, Node* child) {
  const size_t size = old == nullptr ? 0 : old->size;
  auto* table = new (allocate(Children::bytes(size + 1))) Children{size + 1};
  if (size > 0) {
    std::memcpy(table->nodes(), old->nodes(), size * sizeof(Node*));
    std::memcpy(table->keys(), old->keys(), size);
  }
  table->nodes()[size] = child;
  table->keys()[size] = static_cast<unsigned char>(child->edge()[0]);
  return table;
}

// `with` has the same first byte, or is null: then the child goes.
void PrefixTree::replace_child(Node* parent, Node* old, Node* with) {
  Children* children = parent->children.load(std::memory_order_relaxed);
  const int index = children->find(static_cast<unsigned char>(old->edge()[0]));
  SLUICE_CHECK(index >= 0 && children->nodes()[index] == old, "a node of the prefix tree is not its parent's child");
  Children* table = nullptr;
  if (with != nullptr || children->size > 1) {
    const size_t size = with != nullptr ? children->size : children->size - 1;
    table = new (allocate(Children::bytes(size))) Children{size};
    for (size_t from = 0, to = 0; from < children->size; ++from) {
      if (from == static_cast<size_t>(index) && with == nullptr) continue;
      table->nodes()[to] = from == static_cast<size_t>(index) ? with : children->nodes()[from];
      table->keys()[to++] = children->keys()[from];
    }
  }
  parent->children.store(table, std::memory_order_seq_cst);
  retire(children);
}

void PrefixTree::remove_leaf(Node* leaf) {
  Node* parent = leaf->parent;
  replace_child(parent, leaf, nullptr);
  unlink(leaf);
  if (Claims* claims = leaf->claims.load(std::memory_order_relaxed); claims != nullptr) {
    for (uint32_t i = 0; i < claims->size.load(std::memory_order_relaxed); ++i) {
      worker_bytes_[claims->data()[i].worker] -= leaf->edge_size;
    }
    retire(claims);
  }
  const uint32_t tick = leaf->tick;
  retire(leaf);
  nodes_.fetch_sub(1, std::memory_order_relaxed);

  if (parent != root_ && parent->children.load(std::memory_order_relaxed) == nullptr) {
    // The parent is a leaf now. If it was not used on its own since, it is as old as what went.
    if (parent->tick > tick) {
      touch_leaf(parent);
    } else {
      parent->listed = true;
      parent->newer = oldest_;
      parent->older = nullptr;
      (oldest_ == nullptr ? newest_ : oldest_->older) = parent;
      oldest_ = parent;
    }
  }
}

void PrefixTree::unlink(Node* node) {
  if (!node->listed) return;
  (node->older == nullptr ? oldest_ : node->older->newer) = node->newer;
  (node->newer == nullptr ? newest_ : node->newer->older) = node->older;
  node->older = node->newer = nullptr;
  node->listed = false;
}

void PrefixTree::touch_leaf(Node* node) {
  unlink(node);
  node->listed = true;
  node->older = newest_;
  (newest_ == nullptr ? oldest_ : newest_->newer) = node;
  newest_ = node;
}

PrefixTree::Node* PrefixTree::split(Node* node, size_t length) {
  Node* parent = node->parent;
  Node* upper = new_node(node->edge().substr(0, length), parent);
  Node* lower = new_node(node->edge().substr(length), upper);
  upper->tick = lower->tick = node->tick;

  // The lower half takes over the tables; the upper one starts with a copy of the claims.
  Claims* claims = node->claims.load(std::memory_order_relaxed);
  lower->claims.store(claims, std::memory_order_relaxed);
  if (claims != nullptr) {
    const uint32_t size = claims->size.load(std::memory_order_relaxed);
    auto* copy = new (allocate(Claims::bytes(size + 1))) Claims{{size}, size + 1};
    for (uint32_t i = 0; i < size; ++i) {
      const Claim& from = claims->data()[i];
      new (&copy->data()[i]) Claim{from.worker, {from.stamp.load(std::memory_order_relaxed)}};
    }
    upper->claims.store(copy, std::memory_order_relaxed);
  }
  Children* children = node->children.load(std::memory_order_relaxed);
  lower->children.store(children, std::memory_order_relaxed);
  if (children != nullptr) {
    for (size_t i = 0; i < children->size; ++i) children->nodes()[i]->parent = lower;
  }
  upper->children.store(with_child(nullptr, lower), std::memory_order_relaxed);
  if (node->listed) {
    // The lower half is the leaf, in the same place of the order.
    lower->older = node->older;
    lower->newer = node->newer;
    lower->listed = true;
    (node->older == nullptr ? oldest_ : node->older->newer) = lower;
    (node->newer == nullptr ? newest_ : node->newer->older) = lower;
  }
  replace_child(parent, node, upper);
  retire(node);
  nodes_.fetch_sub(1, std::memory_order_relaxed);
  return upper;
}

void PrefixTree::claim(Node* node, Holder holder, uint32_t tick) {
  const uint64_t stamp = (static_cast<uint64_t>(holder.generation) << 32) | tick;
  Claims* claims = node->claims.load(std::memory_order_relaxed);
  const uint32_t size = claims == nullptr ? 0 : claims->size.load(std::memory_order_relaxed);
  for (uint32_t i = 0; i < size; ++i) {
    if (claims->data()[i].worker == holder.worker) {
      claims->data()[i].stamp.store(stamp, std::memory_order_release);
      return;
    }
  }
  if (worker_bytes_.size() <= holder.worker) worker_bytes_.resize(holder.worker + 1);
  worker_bytes_[holder.worker] += node->edge_size;
  if (claims != nullptr && size < claims->capacity) {
    new (&claims->data()[size]) Claim{holder.worker, {stamp}};
    claims->size.store(size + 1, std::memory_order_release);
    return;
  }
  const uint32_t capacity = size == 0 ? 1 : 2 * size;
  auto* table = new (allocate(Claims::bytes(capacity))) Claims{{size + 1}, capacity};
  for (uint32_t i = 0; i < size; ++i) {
    const Claim& from = claims->data()[i];
    new (&table->data()[i]) Claim{from.worker, {from.stamp.load(std::memory_order_relaxed)}};
  }
  new (&table->data()[size]) Claim{holder.worker, {stamp}};
  node->claims.store(table, std::memory_order_seq_cst);
  if (claims != nullptr) retire(claims);
}

// True if the worker held the node.
bool PrefixTree::drop_claim(Node* node, uint32_t worker) {
  Claims* claims = node->claims.load(std::memory_order_relaxed);
  const uint32_t size = claims == nullptr ? 0 : claims->size.load(std::memory_order_relaxed);
  uint32_t at = 0;
  while (at < size && claims->data()[at].worker != worker) ++at;
  if (at == size) return false;
  worker_bytes_[worker] -= node->edge_size;
  Claims* table = nullptr;
  if (size > 1) {
    table = new (allocate(Claims::bytes(size - 1))) Claims{{size - 1}, size - 1};
    for (uint32_t from = 0, to = 0; from < size; ++from) {
      if (from == at) continue;
      const Claim& claim = claims->data()[from];
      new (&table->data()[to++]) Claim{claim.worker, {claim.stamp.load(std::memory_order_relaxed)}};
    }
  }
  node->claims.store(table, std::memory_order_seq_cst);
  retire(claims);
  return true;
}

// Makes `bytes` fit into the budget by evicting the oldest leaves, but for `keep`. False if what was evicted may not be
// freed yet because somebody reads; waiting for that, or evicting more meanwhile, would be worse than to drop an
// insert.
bool PrefixTree::make_room(size_t bytes, const Node* keep) {
  const auto over = [&](size_t freeable) { return this->bytes() - freeable + bytes > budget_bytes_; };
  if (!over(0)) return true;
  for (Node* leaf = oldest_; leaf != nullptr && over(retired_.bytes());) {
    if (leaf == keep) {
      leaf = leaf->newer;
      continue;
    }
    remove_leaf(leaf);
    evictions_budget_.fetch_add(1, std::memory_order_relaxed);
    leaf = oldest_;  // the parent may have become the oldest leaf
  }
  reclaim();
  return !over(0);
}

void PrefixTree::reclaim() { bytes_.fetch_sub(retired_.reclaim(), std::memory_order_relaxed); }

// Takes the worker's least recently used claims until it is a tenth below its share, so that the walk over the tree is
// rare.
void PrefixTree::trim_worker(uint32_t worker) {
  const size_t goal = max_bytes_per_worker_ - max_bytes_per_worker_ / 10;
  struct Held {
    uint32_t tick;
    Node* node;
  };
  std::vector<Held> held;
  post_order([&](Node* node) {
    const Claims* claims = node->claims.load(std::memory_order_relaxed);
    const uint32_t size = claims == nullptr ? 0 : claims->size.load(std::memory_order_relaxed);
    for (uint32_t i = 0; i < size; ++i) {
      if (claims->data()[i].worker == worker) held.push_back({claims->data()[i].tick(), node});
    }
  });
  // Children come before their parents in the walk and are never used later than them, so a stable order by last use
  // takes a claim only after all claims below it.
  std::stable_sort(held.begin(), held.end(), [](const Held& a, const Held& b) { return a.tick < b.tick; });
  for (const Held& item : held) {
    if (worker_bytes_[worker] <= goal) break;
    drop_claim(item.node, worker);
    evictions_size_.fetch_add(1, std::memory_order_relaxed);
    if (item.node->claims.load(std::memory_order_relaxed) == nullptr &&
        item.node->children.load(std::memory_order_relaxed) == nullptr) {
      remove_leaf(item.node);
    }
  }
}

// Calls `visit` for every node, children first. `visit` may free the node that it is given.
template <class Visit>
void PrefixTree::post_order(Visit visit) {
  struct Frame {
    Node* node;
    bool expanded;
  };
  std::vector<Frame> stack{{root_, false}};
  while (!stack.empty()) {
    Frame& frame = stack.back();
    Node* node = frame.node;
    if (frame.expanded) {
      stack.pop_back();
      visit(node);
      continue;
    }
    frame.expanded = true;
    if (const Children* children = node->children.load(std::memory_order_relaxed); children != nullptr) {
      for (size_t i = 0; i < children->size; ++i) stack.push_back({children->nodes()[i], false});
    }
  }
}

}  // namespace sluice::routing
