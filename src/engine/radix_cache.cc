#include "engine/radix_cache.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/kv_block_hash.h"

namespace sluice::engine {

class RadixCache::Node {
 public:
  std::vector<int32_t> tokens;
  std::vector<int32_t> slots;
  std::vector<KvDigest> digests;  // of its pages, if events are recorded
  Node* parent = nullptr;
  std::vector<std::unique_ptr<Node>> children;  // by first page
  int64_t locks = 0;
  uint64_t uses = 0;
  uint64_t last_use = 0;
  int32_t state_row = -1;
  bool listed = false;  // in evictable_leaves_
  // Of a root: its place among the namespaces.
  Namespaces::iterator home;

  bool is_root() const { return parent == nullptr; }
  int64_t length() const { return static_cast<int64_t>(tokens.size()); }

  // `page`: the first page of a run of tokens.
  auto place_of(std::span<const int32_t> page) {
    return std::ranges::lower_bound(children, page, std::ranges::lexicographical_compare, [&](const auto& child) {
      return std::span<const int32_t>(child->tokens).first(page.size());
    });
  }
  Node* child(std::span<const int32_t> page) const {
    const auto at = const_cast<Node*>(this)->place_of(page);
    return at != children.end() && std::ranges::equal(std::span((*at)->tokens).first(page.size()), page) ? at->get()
                                                                                                         : nullptr;
  }
  // Leading tokens of the run that are the same, whole pages.
  size_t common(std::span<const int32_t> with, size_t page) const {
    const size_t n = std::min(tokens.size(), with.size());
    const auto same = static_cast<size_t>(
        std::mismatch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n), with.begin()).first -
        tokens.begin());
    return same - same % page;
  }
};

RadixCache::RadixCache(KvPool& pool, const RadixOptions& options)
    : pool_(pool), options_(options), page_(static_cast<size_t>(pool.page_size())) {
  for (int32_t i = options.state_rows; i-- > 0;) free_state_rows_.push_back(options.first_state_row + i);
}

RadixCache::~RadixCache() {
  // Node by node: chains of thousands of nodes must not recurse.
  std::vector<std::unique_ptr<Node>> nodes;
  for (auto& [name, root] : roots_) nodes.push_back(std::move(root));
  while (!nodes.empty()) {
    auto node = std::move(nodes.back());
    nodes.pop_back();
    for (auto& child : node->children) nodes.push_back(std::move(child));
  }
}

int64_t RadixCache::locks(const Node* node) { return node->locks; }
int64_t RadixCache::length(const Node* node) { return node->length(); }
const RadixCache::Node* RadixCache::parent(const Node* node) {
  return node->parent && !node->parent->is_root() ? node->parent : nullptr;
}

void RadixCache::copy_slots(const Node* end, std::span<int32_t> to) {
  for (; end && !end->is_root(); end = end->parent) {
    std::ranges::copy(end->slots, to.last(end->slots.size()).begin());
    to = to.first(to.size() - end->slots.size());
  }
}

RadixCache::Order RadixCache::order_of(Node* node) const {
  // Nobody can go on from a leaf without a state where states are needed: all of those go first.
  if (options_.state_rows > 0 && node->state_row < 0) return {0, node->last_use, node};
  const bool by_uses = options_.eviction == RadixOptions::Eviction::kLeastFrequentlyUsed;
  return {by_uses ? node->uses + 1 : 1, node->last_use, node};
}

void RadixCache::touch(Node* node, bool counts) {
  if (node->listed) evictable_leaves_.erase(order_of(node));
  node->last_use = tick_;
  node->uses += counts;
  if (node->listed) evictable_leaves_.insert(order_of(node));
}

void RadixCache::leaf_changed(Node* node) {
  if (node->is_root()) return;
  const bool should = node->children.empty() && node->locks == 0;
  if (should == node->listed) return;
  if (should) {
    evictable_leaves_.insert(order_of(node));
  } else {
    evictable_leaves_.erase(order_of(node));
  }
  node->listed = should;
}

RadixCache::Node* RadixCache::split(Node* node, int64_t at) {
  // The upper part is a new node: requests that have locked `node` hold pointers to the lower one, and their locks
  // count for both. The state is that of the lower one's end.
  auto upper = std::make_unique<Node>();
  Node* top = upper.get();
  top->parent = node->parent;
  top->locks = node->locks;
  top->uses = node->uses;
  top->last_use = node->last_use;
  auto place = node->parent->place_of(std::span(node->tokens).first(page_));
  std::unique_ptr<Node> lower = std::move(*place);
  *place = std::move(upper);
  const auto cut = [](auto& from, auto& to, int64_t n) {
    to.assign(from.begin(), from.begin() + n);
    from.erase(from.begin(), from.begin() + n);
  };
  cut(lower->tokens, top->tokens, at);
  cut(lower->slots, top->slots, at);
  if (options_.record_events) cut(lower->digests, top->digests, at / static_cast<int64_t>(page_));
  lower->parent = top;
  top->children.push_back(std::move(lower));
  return top;
}

RadixCache::Match RadixCache::match(std::string_view extra_key, std::span<const int32_t> tokens) {
  Match found;
  std::vector<PathStep> path;
  const int64_t length = peek(extra_key, tokens, &path);
  if (length == 0) return found;
  ++tick_;
  found.slots.reserve(static_cast<size_t>(length));
  for (const auto& step : path) {
    Node* node = const_cast<Node*>(step.node);
    if (step.tokens < node->length()) node = split(node, step.tokens);
    touch(node, /*counts=*/true);
    found.slots.insert(found.slots.end(), node->slots.begin(), node->slots.end());
    found.node = node;
  }
  found.state_row = found.node->state_row;
  return found;
}

int64_t RadixCache::peek(std::string_view extra_key, std::span<const int32_t> tokens,
                         std::vector<PathStep>* path) const {
  if (path) path->clear();
  const auto home = roots_.find(extra_key);
  if (home == roots_.end()) return 0;
  const bool anywhere = options_.state_rows == 0;
  int64_t walked = 0;
  int64_t usable = 0;
  size_t usable_steps = 0;
  const Node* node = home->second.get();
  while (tokens.size() >= page_) {
    const Node* child = node->child(tokens.first(page_));
    if (!child) break;
    const size_t n = child->common(tokens, page_);
    const bool whole = n == child->tokens.size();
    if (!whole && !anywhere) break;
    walked += static_cast<int64_t>(n);
    if (path) path->push_back({child, static_cast<int64_t>(n)});
    if (anywhere || child->state_row >= 0) {
      usable = walked;
      usable_steps = path ? path->size() : 0;
    }
    if (!whole) break;
    node = child;
    tokens = tokens.subspan(n);
  }
  if (path) path->resize(usable_steps);
  return usable;
}

RadixCache::Inserted RadixCache::insert(std::string_view extra_key, std::span<const int32_t> tokens,
                                        std::span<const int32_t> slots) {
  SLUICE_CHECK(tokens.size() == slots.size() && tokens.size() % page_ == 0, "{} tokens with {} slots in pages of {}",
               tokens.size(), slots.size(), page_);
  if (tokens.empty()) return {};
  auto home = roots_.find(extra_key);
  if (home == roots_.end()) {
    home = roots_.emplace(std::string(extra_key), std::make_unique<Node>()).first;
    home->second->home = home;
  }
  ++tick_;
  Node* node = home->second.get();
  Inserted result;
  while (!tokens.empty()) {
    Node* child = node->child(tokens.first(page_));
    if (!child) break;
    const size_t n = child->common(tokens, page_);
    if (n < child->tokens.size()) child = split(child, static_cast<int64_t>(n));
    touch(child, /*counts=*/false);
    result.held += static_cast<int64_t>(n);
    node = child;
    tokens = tokens.subspan(n);
    slots = slots.subspan(n);
  }
  if (!tokens.empty()) {
    auto leaf = std::make_unique<Node>();
    leaf->tokens.assign(tokens.begin(), tokens.end());
    leaf->slots.assign(slots.begin(), slots.end());
    leaf->parent = node;
    leaf->last_use = tick_;
    evictable_ += leaf->length();
    Node* raw = leaf.get();
    node->children.insert(node->place_of(tokens.first(page_)), std::move(leaf));
    leaf_changed(node);
    leaf_changed(raw);
    if (options_.record_events) record_stored(*raw, extra_key);
    node = raw;
  }
  result.end = node;
  return result;
}

// ---- events

void RadixCache::record_stored(Node& node, std::string_view extra_key) {
  KvDigest seed;
  const KvDigest* before = nullptr;
  if (!node.parent->is_root()) {
    before = &node.parent->digests.back();
  } else if (!extra_key.empty()) {
    seed = kv_namespace_digest(extra_key);
    before = &seed;
  }
  std::optional<protocol::KvBlockHash> parent;
  if (!node.parent->is_root()) parent = kv_block_hash(*before);
  node.digests.reserve(node.tokens.size() / page_);
  for (size_t at = 0; at < node.tokens.size(); at += page_) {
    const auto tokens = std::span(node.tokens).subspan(at, page_);
    node.digests.push_back(kv_block_digest(before, tokens));
    before = &node.digests.back();
    const protocol::KvBlockHash hash = kv_block_hash(*before);
    events_.push_back({.kind = protocol::KvEvent::Kind::kStored,
                       .hashes = {hash},
                       .parent = parent,
                       .token_ids = {tokens.begin(), tokens.end()},
                       .block_size = static_cast<int64_t>(page_),
                       .medium = "GPU",
                       .keyed = !extra_key.empty()});
    parent = hash;
  }
}

void RadixCache::record_removed(const Node& node) {
  protocol::KvEvent event{.kind = protocol::KvEvent::Kind::kRemoved, .medium = "GPU"};
  for (const auto& digest : node.digests) event.hashes.push_back(kv_block_hash(digest));
  events_.push_back(std::move(event));
}

std::vector<protocol::KvEvent> RadixCache::take_events() { return std::exchange(events_, {}); }

// ---- states

std::optional<int32_t> RadixCache::keep_state(Node* node) {
  if (node->state_row >= 0 || options_.state_rows == 0) return std::nullopt;
  if (free_state_rows_.empty()) drop_state(*std::ranges::min_element(with_state_, {}, &Node::last_use));
  if (node->listed) evictable_leaves_.erase(order_of(node));
  node->state_row = free_state_rows_.back();
  free_state_rows_.pop_back();
  with_state_.push_back(node);
  if (node->listed) evictable_leaves_.insert(order_of(node));
  return node->state_row;
}

void RadixCache::drop_state(Node* node) {
  if (node->state_row < 0) return;
  if (node->listed) evictable_leaves_.erase(order_of(node));
  free_state_rows_.push_back(std::exchange(node->state_row, -1));
  if (node->listed) evictable_leaves_.insert(order_of(node));
  std::erase(with_state_, node);
}

// ---- what may go

void RadixCache::lock(Node* node) {
  for (; node && !node->is_root(); node = node->parent) {
    if (node->locks++ == 0) {
      evictable_ -= node->length();
      locked_ += node->length();
      leaf_changed(node);
    }
  }
}

void RadixCache::unlock(Node* node) {
  for (; node && !node->is_root(); node = node->parent) {
    SLUICE_CHECK(node->locks > 0, "a path is unlocked more often than it was locked");
    if (--node->locks == 0) {
      evictable_ += node->length();
      locked_ -= node->length();
      leaf_changed(node);
    }
  }
}

void RadixCache::remove(Node* leaf) {
  if (leaf->listed) evictable_leaves_.erase(order_of(leaf));
  leaf->listed = false;
  drop_state(leaf);
  pool_.free(leaf->slots);
  evictable_ -= leaf->length();
  Node* above = leaf->parent;
  above->children.erase(above->place_of(std::span(leaf->tokens).first(page_)));
  if (!above->is_root()) {
    leaf_changed(above);
  } else if (above->children.empty()) {
    roots_.erase(above->home);  // or namespaces that clients make up would pile up
  }
}

int64_t RadixCache::evict(int64_t tokens) {
  int64_t freed = 0;
  while (freed < tokens && !evictable_leaves_.empty()) {
    Node* leaf = std::get<Node*>(*evictable_leaves_.begin());
    freed += leaf->length();
    if (options_.record_events) record_removed(*leaf);
    remove(leaf);
  }
  return freed;
}

void RadixCache::reset() {
  SLUICE_CHECK(locked_ == 0, "reset of a prefix cache with {} locked tokens", locked_);
  while (!evictable_leaves_.empty()) remove(std::get<Node*>(*evictable_leaves_.begin()));
  SLUICE_CHECK(evictable_ == 0 && roots_.empty(), "{} tokens are left after a reset", evictable_);
  if (options_.record_events) events_.push_back({.kind = protocol::KvEvent::Kind::kCleared});
}

void RadixCache::check_invariants() const {
  int64_t evictable = 0;
  int64_t locked = 0;
  size_t leaves = 0;
  size_t states = 0;
  std::vector<const Node*> todo;
  for (const auto& [name, root] : roots_) {
    SLUICE_CHECK(root->tokens.empty() && !root->children.empty(), "namespace '{}' is empty", name);
    todo.push_back(root.get());
  }
  while (!todo.empty()) {
    const Node* node = todo.back();
    todo.pop_back();
    int64_t below = 0;
    for (size_t i = 0; i < node->children.size(); ++i) {
      const Node* child = node->children[i].get();
      SLUICE_CHECK(child->parent == node && !child->tokens.empty(), "broken link");
      SLUICE_CHECK(child->tokens.size() % page_ == 0, "{} tokens are no whole pages", child->tokens.size());
      SLUICE_CHECK(i == 0 || std::ranges::lexicographical_compare(std::span(node->children[i - 1]->tokens).first(page_),
                                                                  std::span(child->tokens).first(page_)),
                   "children out of order");
      SLUICE_CHECK(node->is_root() || child->last_use <= node->last_use, "a child was used after its parent");
      below += child->locks;
      todo.push_back(child);
    }
    if (node->is_root()) continue;
    SLUICE_CHECK(node->tokens.size() == node->slots.size(), "tokens without slots");
    SLUICE_CHECK(node->locks >= below, "{} locks above {}", node->locks, below);
    SLUICE_CHECK(!options_.record_events || node->digests.size() * page_ == node->tokens.size(), "digests are missing");
    states += node->state_row >= 0;
    (node->locks ? locked : evictable) += node->length();
    const bool leaf = node->children.empty() && node->locks == 0;
    SLUICE_CHECK(node->listed == leaf && evictable_leaves_.contains(order_of(const_cast<Node*>(node))) == leaf,
                 "leaf listed wrongly");
    leaves += leaf;
  }
  SLUICE_CHECK(leaves == evictable_leaves_.size(), "{} leaves, {} listed", leaves, evictable_leaves_.size());
  SLUICE_CHECK(
      states == with_state_.size() && states + free_state_rows_.size() == static_cast<size_t>(options_.state_rows),
      "{} nodes have a state, {} are listed, {} rows are free of {}", states, with_state_.size(),
      free_state_rows_.size(), options_.state_rows);
  SLUICE_CHECK(evictable == evictable_ && locked == locked_, "counts {} {} but {} {}", evictable_, locked_, evictable,
               locked);
}

}  // namespace sluice::engine
