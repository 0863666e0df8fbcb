#include "engine/radix_cache.h"

#include <algorithm>

#include "base/check.h"

namespace sluice::engine {

class RadixCache::Node {
 public:
  std::vector<int32_t> tokens;
  std::vector<int32_t> slots;
  Node* parent = nullptr;
  std::vector<std::unique_ptr<Node>> children;  // by first token
  int64_t locks = 0;
  uint64_t last_use = 0;
  bool listed = false;  // in evictable_leaves_
  // Of a root: its place among the namespaces.
  Namespaces::iterator home;

  bool is_root() const { return parent == nullptr; }
  int64_t length() const { return static_cast<int64_t>(tokens.size()); }

  auto place_of(int32_t first) {
    return std::lower_bound(children.begin(), children.end(), first,
                            [](const auto& child, int32_t token) { return child->tokens.front() < token; });
  }
  Node* child(int32_t first) const {
    const auto at = const_cast<Node*>(this)->place_of(first);
    return at != children.end() && (*at)->tokens.front() == first ? at->get() : nullptr;
  }
  size_t common(std::span<const int32_t> with) const {
    const size_t n = std::min(tokens.size(), with.size());
    return static_cast<size_t>(
        std::mismatch(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n), with.begin()).first -
        tokens.begin());
  }
};

RadixCache::RadixCache(KvPool& pool) : pool_(pool) {}

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

bool RadixCache::is_locked(const Node* node) { return node->locks > 0; }
int64_t RadixCache::locks(const Node* node) { return node->locks; }
int64_t RadixCache::length(const Node* node) { return node->length(); }
const RadixCache::Node* RadixCache::parent(const Node* node) {
  return node->parent && !node->parent->is_root() ? node->parent : nullptr;
}

void RadixCache::touch(Node* node) {
  if (node->listed) {
    evictable_leaves_.erase({node->last_use, node});
    evictable_leaves_.insert({tick_, node});
  }
  node->last_use = tick_;
}

void RadixCache::leaf_changed(Node* node) {
  if (node->is_root()) return;
  const bool should = node->children.empty() && node->locks == 0;
  if (should == node->listed) return;
  if (should) {
    evictable_leaves_.insert({node->last_use, node});
  } else {
    evictable_leaves_.erase({node->last_use, node});
  }
  node->listed = should;
}

RadixCache::Node* RadixCache::split(Node* node, size_t at) {
  // The upper part is a new node: requests that have locked `node` hold pointers to the lower one, and their locks
  // count for both.
  auto upper = std::make_unique<Node>();
  Node* top = upper.get();
  const auto cut = static_cast<std::ptrdiff_t>(at);
  top->tokens.assign(node->tokens.begin(), node->tokens.begin() + cut);
  top->slots.assign(node->slots.begin(), node->slots.begin() + cut);
  top->parent = node->parent;
  top->locks = node->locks;
  top->last_use = node->last_use;
  auto place = node->parent->place_of(node->tokens.front());
  std::unique_ptr<Node> lower = std::move(*place);
  *place = std::move(upper);
  lower->tokens.erase(lower->tokens.begin(), lower->tokens.begin() + cut);
  lower->slots.erase(lower->slots.begin(), lower->slots.begin() + cut);
  lower->parent = top;
  top->children.push_back(std::move(lower));
  return top;
}

RadixCache::Match RadixCache::match(std::string_view extra_key, std::span<const int32_t> tokens) {
  Match found;
  const auto home = roots_.find(extra_key);
  if (home == roots_.end()) return found;
  ++tick_;
  Node* node = home->second.get();
  while (!tokens.empty()) {
    Node* child = node->child(tokens.front());
    if (!child) break;
    const size_t n = child->common(tokens);
    if (n < child->tokens.size()) child = split(child, n);
    touch(child);
    found.slots.insert(found.slots.end(), child->slots.begin(), child->slots.end());
    found.node = node = child;
    tokens = tokens.subspan(n);
  }
  return found;
}

int64_t RadixCache::peek(std::string_view extra_key, std::span<const int32_t> tokens,
                         const std::function<void(const Node*, int64_t)>& visit) const {
  const auto home = roots_.find(extra_key);
  if (home == roots_.end()) return 0;
  int64_t matched = 0;
  const Node* node = home->second.get();
  while (!tokens.empty()) {
    const Node* child = node->child(tokens.front());
    if (!child) break;
    const size_t n = child->common(tokens);
    matched += static_cast<int64_t>(n);
    if (visit) visit(child, static_cast<int64_t>(n));
    if (n < child->tokens.size()) break;
    node = child;
    tokens = tokens.subspan(n);
  }
  return matched;
}

int64_t RadixCache::insert(std::string_view extra_key, std::span<const int32_t> tokens,
                           std::span<const int32_t> slots) {
  SLUICE_CHECK(tokens.size() == slots.size(), "{} tokens with {} slots", tokens.size(), slots.size());
  if (tokens.empty()) return 0;
  auto home = roots_.find(extra_key);
  if (home == roots_.end()) {
    home = roots_.emplace(std::string(extra_key), std::make_unique<Node>()).first;
    home->second->home = home;
  }
  ++tick_;
  Node* node = home->second.get();
  int64_t held = 0;
  while (!tokens.empty()) {
    Node* child = node->child(tokens.front());
    if (!child) break;
    const size_t n = child->common(tokens);
    if (n < child->tokens.size()) child = split(child, n);
    touch(child);
    held += static_cast<int64_t>(n);
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
    node->children.insert(node->place_of(tokens.front()), std::move(leaf));
    leaf_changed(node);
    leaf_changed(raw);
  }
  return held;
}

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
  pool_.free(leaf->slots);
  evictable_ -= leaf->length();
  if (leaf->listed) evictable_leaves_.erase({leaf->last_use, leaf});
  Node* above = leaf->parent;
  above->children.erase(above->place_of(leaf->tokens.front()));
  if (!above->is_root()) {
    leaf_changed(above);
  } else if (above->children.empty()) {
    roots_.erase(above->home);  // or namespaces that clients make up would pile up
  }
}

int64_t RadixCache::evict(int64_t tokens) {
  int64_t freed = 0;
  while (freed < tokens && !evictable_leaves_.empty()) {
    Node* leaf = evictable_leaves_.begin()->second;
    freed += leaf->length();
    remove(leaf);
  }
  return freed;
}

void RadixCache::reset() {
  SLUICE_CHECK(locked_ == 0, "reset of a prefix cache with {} locked tokens", locked_);
  evict(evictable_);
  SLUICE_CHECK(evictable_ == 0 && roots_.empty(), "{} tokens are left after a reset", evictable_);
}

void RadixCache::check_invariants() const {
  int64_t evictable = 0;
  int64_t locked = 0;
  size_t leaves = 0;
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
      SLUICE_CHECK(i == 0 || node->children[i - 1]->tokens.front() < child->tokens.front(), "children out of order");
      SLUICE_CHECK(node->is_root() || child->last_use <= node->last_use, "a child was used after its parent");
      below += child->locks;
      todo.push_back(child);
    }
    if (node->is_root()) continue;
    SLUICE_CHECK(node->tokens.size() == node->slots.size(), "tokens without slots");
    SLUICE_CHECK(node->locks >= below, "{} locks above {}", node->locks, below);
    (node->locks ? locked : evictable) += node->length();
    const bool leaf = node->children.empty() && node->locks == 0;
    SLUICE_CHECK(
        node->listed == leaf &&
            evictable_leaves_.contains({node->last_use, node->listed ? const_cast<Node*>(node) : nullptr}) == leaf,
        "leaf listed wrongly");
    leaves += leaf;
  }
  SLUICE_CHECK(leaves == evictable_leaves_.size(), "{} leaves, {} listed", leaves, evictable_leaves_.size());
  SLUICE_CHECK(evictable == evictable_ && locked == locked_, "counts {} {} but {} {}", evictable_, locked_, evictable,
               locked);
}

}  // namespace sluice::engine
