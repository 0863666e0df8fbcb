#include "routing/prefix_tree.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <new>
#include <utility>

#include "base/check.h"
#include "routing/common_prefix.h"
#include "routing/text_mark.h"

namespace sluice::routing {
namespace {

constexpr uint32_t kNobody = ~uint32_t{0};
// A longer edge is a chain of nodes: so the heap has to find no large pieces, and room for a long text is made bit by
// bit.
constexpr size_t kMaxEdge = 2048;
// Blocks wait for their readers until they come to this much: looking for readers costs the same for one as for many.
constexpr size_t kReclaimBytes = 32 << 10;
// Claims of a full table, which a reference to the next one follows.
constexpr uint32_t kTableClaims = 128;
// How many nodes of a path are asked for holders that have no more than that, how many claims of each, and which part
// of the text is too little to ask.
constexpr size_t kMaxSteps = 8;
constexpr size_t kPartClaims = 32;
constexpr size_t kLeastPart = 16;
// What goes beyond need, at most, so that a piece that is large enough comes of it.
constexpr size_t kMoreBytes = 128 << 10;
// How many used leaves may go back into the queue before the oldest goes anyway: an eviction takes bounded time.
constexpr int kSecondChances = 64;
// How deep inserts to come are followed.
constexpr int kExpectedSteps = 8;
// How many leaves an insert looks at for a worker that is near its share.
constexpr int kTrimSteps = 64;

// Edges of so many bytes are places (PrefixPlace). Where texts part the tree is a bush of short ones, of which each
// text has its own: what they share is known by the long one before.
constexpr size_t kPlaceBytes = 128;

constexpr float kRememberDrops = 0.998F;  // of full workers: some hundred

}  // namespace

// One worker's claim on a node: the worker and the end of the number of its life, in one word, so that whoever reads it
// has both of the same claim.
struct PrefixTree::Claim {
  std::atomic<uint32_t> who{kNobody};
  std::atomic<uint32_t> tick{0};  // of last use

  static uint32_t word_of(Holder holder) {
    return holder.generation << Generations::kWorkerBits | holder.worker;  // the end of it
  }
  static uint32_t worker_in(uint32_t word) { return word == kNobody ? kNobody : word & Generations::kWorkerMask; }
  static bool is_of(uint32_t word, uint32_t generation) {
    return word >> Generations::kWorkerBits == generation << Generations::kWorkerBits >> Generations::kWorkerBits;
  }

  // Writes what changed only: readers have the line in their caches.
  void begin(uint32_t word, uint32_t now) {
    if (tick.load(std::memory_order_relaxed) != now) tick.store(now, std::memory_order_relaxed);
    if (who.load(std::memory_order_relaxed) != word) who.store(word, std::memory_order_release);
  }
  void begin_as(const Claim& other) {
    begin(other.who.load(std::memory_order_relaxed), other.tick.load(std::memory_order_relaxed));
  }
  uint32_t owner() const { return worker_in(who.load(std::memory_order_relaxed)); }
};

// Children by the first byte of their edge: the bytes, found by memchr, stand before the references. An entry whose
// reference is 0 is gone, and waits for a child with the same first byte.
struct PrefixTree::Children {
  std::atomic<uint32_t> size{0};  // gone ones included
  uint16_t capacity;              // constant after publication
  uint16_t live = 0;              // writer only

  unsigned char* keys() { return reinterpret_cast<unsigned char*>(this + 1); }
  std::atomic<Ref>* nodes() { return reinterpret_cast<std::atomic<Ref>*>(keys() + bytes_of_keys(capacity)); }
  static size_t bytes_of_keys(uint32_t capacity) { return (capacity + sizeof(Ref) - 1) / sizeof(Ref) * sizeof(Ref); }
  static size_t bytes(uint32_t capacity) { return sizeof(Children) + bytes_of_keys(capacity) + capacity * sizeof(Ref); }

  std::atomic<Ref>* find(char first) {
    const void* hit = std::memchr(keys(), static_cast<unsigned char>(first), size.load(std::memory_order_acquire));
    return hit == nullptr ? nullptr : nodes() + (static_cast<const unsigned char*>(hit) - keys());
  }
  // Must have room.
  void append(char first, Ref node) {
    const uint32_t at = size.load(std::memory_order_relaxed);
    new (nodes() + at) std::atomic<Ref>(node);
    keys()[at] = static_cast<unsigned char>(first);
    ++live;
    size.store(at + 1, std::memory_order_release);
  }
};

struct PrefixTree::Node {
  std::atomic<Ref> children{0};
  // Most nodes have one holder, and no table.
  Claim first;
  std::atomic<Ref> claims{0};        // the first table; tables are written before `further` and read after it
  std::atomic<uint16_t> further{0};  // claims in the tables
  // The edge's bytes follow the node.
  uint16_t edge_size = 0;
  uint32_t born = 0;  // no other node that stands or has stood here has the same; constant after publication

  // Writer only.
  Ref parent = 0;
  Ref older = 0;
  Ref newer = 0;
  static constexpr uint32_t kMostInserts = (1u << 29) - 1;
  uint32_t inserts : 29 = 0;  // that came through, at most kMostInserts; never fewer than through a child
  bool queued : 1 = false;    // in the queue of leaves
  bool used : 1 = false;      // since it came into the queue
  bool visited : 1 = false;   // perhaps the next that some Visit comes to

  char* edge_data() { return reinterpret_cast<char*>(this + 1); }
  std::string_view edge() const { return {reinterpret_cast<const char*>(this + 1), edge_size}; }
};

PrefixTree::PrefixTree(size_t budget_bytes, size_t max_bytes_per_worker)
    : max_bytes_per_worker_(max_bytes_per_worker),
      max_text_(std::min(budget_bytes, max_bytes_per_worker) / 4),
      heap_(budget_bytes),
      reserve_(std::max<size_t>(heap_.bytes() / 32, 4 * kMaxEdge)),
      retired_(heap_) {
  root_ = new_node({}, nullptr);
  SLUICE_CHECK(root_ != nullptr, "a prefix tree cannot begin with {} bytes", budget_bytes);
  nodes_ = 1;
}

// ---- reading ----

std::atomic<PrefixTree::Ref>& PrefixTree::next_table(Ref full_table) const {
  return *reinterpret_cast<std::atomic<Ref>*>(heap_.at<Claim>(full_table) + kTableClaims);
}

// Whether `visit` is true of a claim of the node; the first one ends it.
template <class Function>
bool PrefixTree::any_claim(const Node* node, Function visit) const {
  uint32_t left = node->further.load(std::memory_order_acquire);
  if (visit(const_cast<Node*>(node)->first)) return true;
  for (const std::atomic<Ref>* table = &node->claims; left > 0;) {
    const Ref block = table->load(std::memory_order_seq_cst);
    Claim* claims = heap_.at<Claim>(block);
    const uint32_t here = std::min(left, kTableClaims);
    for (uint32_t i = 0; i < here; ++i) {
      if (visit(claims[i])) return true;
    }
    left -= here;
    table = &next_table(block);
  }
  return false;
}

template <class Function>
void PrefixTree::each_claim(const Node* node, Function visit) const {
  (void)any_claim(node, [&](Claim& claim) { return visit(claim), false; });
}

// Whether the claim is somebody's who still lives the life in which it was made.
bool PrefixTree::live(const Claim& claim, uint32_t* worker) const {
  const uint32_t word = claim.who.load(std::memory_order_acquire);
  *worker = Claim::worker_in(word);
  return *worker != kNobody && Claim::is_of(word, generations_.of(*worker));
}

bool PrefixTree::held(const Node* node) const {
  uint32_t worker = 0;
  return any_claim(node, [&](const Claim& claim) { return live(claim, &worker); });
}

// The holders of a node; when there are too many, the least recently used fall out.
void PrefixTree::collect(const Node* node, PrefixMatch* match) const {
  // Last use, and behind it the worker. When it is full it becomes a heap with the oldest on top: nobody pays for an
  // order that nobody asks for.
  std::array<uint64_t, PrefixMatch::kMaxHolders> found;
  size_t size = 0;
  each_claim(node, [&](const Claim& claim) {
    const uint64_t tick = claim.tick.load(std::memory_order_relaxed);
    const bool full = size == found.size();
    if (full && tick <= found.front() >> 32) return;
    uint32_t worker = 0;
    if (!live(claim, &worker)) return;
    if (full) {
      std::ranges::pop_heap(found, std::greater());
      found.back() = tick << 32 | worker;
      std::ranges::push_heap(found, std::greater());
    } else {
      found[size++] = tick << 32 | worker;
      if (size == found.size()) std::ranges::make_heap(found, std::greater());
    }
  });
  for (size_t i = 0; i < size; ++i) match->holders[i] = static_cast<uint32_t>(found[i]);
  match->num_holders = static_cast<uint8_t>(size);
}

// Those holders of a node that hold no more of the text than its end, `bytes` from the beginning.
void PrefixTree::collect_parts(const Node* node, size_t bytes, PrefixMatch* match) const {
  // Of many claims other ones for other texts: a crowd is not known by those of its members that came first.
  const size_t claims = std::min<uint32_t>(node->further.load(std::memory_order_relaxed) + 1u, kTableClaims);
  const size_t skipped = claims > kPartClaims ? match->total_bytes % (claims - kPartClaims + 1) : 0;
  size_t seen = 0;
  (void)any_claim(node, [&](const Claim& claim) {
    if (seen++ < skipped) return false;
    uint32_t worker = 0;
    if (live(claim, &worker)) match->add(worker, bytes);
    return seen == skipped + kPartClaims || match->num_parts == PrefixMatch::kMaxParts;
  });
}

PrefixTree::Node* PrefixTree::child_of(const Node* node, char first) const {
  const Ref table = node->children.load(std::memory_order_seq_cst);
  if (table == 0) return nullptr;
  const std::atomic<Ref>* entry = heap_.at<Children>(table)->find(first);
  const Ref child = entry == nullptr ? 0 : entry->load(std::memory_order_seq_cst);
  return child == 0 ? nullptr : node_at(child);
}

PrefixMatch PrefixTree::match(std::string_view text) const {
  PrefixMatch match;
  match.total_bytes = text.size();
  match.shared_drops = shared_drops_.load(std::memory_order_relaxed);

  const EpochGuard guard;
  // The last nodes of the path and where their edges begin: as many as a character has bytes, see below.
  std::array<std::pair<const Node*, size_t>, 4> path;
  size_t depth = 0;
  // The last nodes that have more claims than the one below them, and where they end.
  std::array<std::pair<const Node*, size_t>, kMaxSteps> steps;
  size_t num_steps = 0;
  uint32_t claims_above = 0;
  size_t position = 0;
  const Node* node = root_;
  while (position < text.size()) {
    const Node* above = node;
    node = child_of(node, text[position]);
    // A node whose holders are all gone does not count, and neither does what lies below it.
    if (node == nullptr || !held(node)) break;
    const uint32_t claims = node->further.load(std::memory_order_relaxed);
    if (claims < claims_above) steps[num_steps++ % kMaxSteps] = {above, position};
    claims_above = claims;
    const size_t common = common_prefix(node->edge(), text.substr(position));
    path[depth++ % path.size()] = {node, position};
    position += common;
    if (common < node->edge_size) break;
    if (common >= kPlaceBytes) match.place = {heap_.ref_of(node), node->born, position};
  }
  match.matched_bytes = whole_characters(text, position);
  // Who holds the whole node holds the part that matched. A node that has part of a cut character only has no say.
  while (depth > 0 && path[(depth - 1) % path.size()].second >= match.matched_bytes) --depth;
  if (depth > 0) collect(path[(depth - 1) % path.size()].first, &match);
  if (match.num_holders == 0) match.matched_bytes = 0;
  // As many as there is room for hold all that matched: who holds less is no better than those.
  if (match.num_holders == PrefixMatch::kMaxHolders) return match;
  for (size_t i = 0; i < std::min(num_steps, kMaxSteps) && match.num_parts < PrefixMatch::kMaxParts; ++i) {
    const auto [step, end] = steps[(num_steps - 1 - i) % kMaxSteps];
    if (end * kLeastPart < text.size()) break;
    if (end < match.matched_bytes) collect_parts(step, end, &match);
  }
  return match;
}

// ---- writing ----

void PrefixTree::expect(std::span<const Expected> inserts) const {
  // One step of all, then the next: whatever is looked at was asked for while the others took theirs.
  struct Walk {
    std::string_view rest;
    size_t known = 0;            // bytes of the rest
    const Node* node = nullptr;  // null: it has come to its end
    Children* table = nullptr;
  };
  std::array<Walk, kExpected> walks;
  SLUICE_CHECK(inserts.size() <= walks.size(), "{} texts at once, of at most {}", inserts.size(), walks.size());
  const auto all = std::span(walks).first(inserts.size());
  for (size_t i = 0; i < inserts.size(); ++i) {
    all[i] = {.rest = inserts[i].text.substr(0, max_text_), .known = inserts[i].known, .node = root_};
  }
  bool any = true;
  for (int step = 0; step < kExpectedSteps && any; ++step) {
    any = false;
    for (Walk& walk : all) {
      if (walk.node == nullptr) continue;
      const Ref table = walk.node->children.load(std::memory_order_relaxed);
      walk.table = table == 0 || walk.rest.empty() ? nullptr : heap_.at<Children>(table);
      __builtin_prefetch(walk.table);
    }
    for (Walk& walk : all) {
      if (walk.node == nullptr) continue;
      const std::atomic<Ref>* entry = walk.table == nullptr ? nullptr : walk.table->find(walk.rest.front());
      const Ref child = entry == nullptr ? 0 : entry->load(std::memory_order_relaxed);
      walk.node = child == 0 ? nullptr : node_at(child);
      if (walk.node == nullptr) continue;
      __builtin_prefetch(walk.node, 1);
      __builtin_prefetch(walk.node + 1);  // its edge
    }
    for (Walk& walk : all) {
      if (walk.node == nullptr) continue;
      // What has become of the place since does not matter: it is fetched in vain at worst.
      const size_t size = walk.node->edge_size;
      const bool goes_on = size <= walk.known ? size <= walk.rest.size() : walk.rest.starts_with(walk.node->edge());
      if (!goes_on) {
        walk.node = nullptr;
        continue;
      }
      walk.rest.remove_prefix(size);
      walk.known -= std::min(walk.known, size);
      any = true;
    }
  }
}

// How many bytes of the text are known to be the same as in the tree. The walk compares nothing: where it meets the
// node at which the text was found, all edges that it came over were compared then, and edges do not change.
size_t PrefixTree::known_bytes(std::string_view text, const PrefixPlace& place) const {
  if (place.node == 0 || place.bytes > text.size()) return 0;
  const Node* node = root_;
  size_t position = 0;
  while (position < place.bytes) {
    node = child_of(node, text[position]);
    if (node == nullptr) return 0;
    position += node->edge_size;
  }
  return position == place.bytes && place.is({heap_.ref_of(node), node->born}) ? position : 0;
}

bool PrefixTree::insert(std::string_view text, Holder holder, uint32_t tick, size_t limit, size_t* held,
                        const PrefixPlace& place) {
  Generations::check(holder.worker);
  text = text.substr(0, max_text_);
  // What is evicted on the way does not come back with other bytes: only this call adds to the tree meanwhile.
  size_t known = known_bytes(text, place);
  Node* node = root_;
  size_t held_bytes = 0;
  bool had = true;
  while (!text.empty()) {
    Node* child = child_of(node, text.front());
    if (child == nullptr) {
      child = add_leaf(node, text.substr(0, kMaxEdge), holder, tick);
      if (child == nullptr) return false;
      had = false;
    } else {
      const size_t common = child->edge_size <= known ? child->edge_size : common_prefix(child->edge(), text);
      if (common < child->edge_size) child = split(child, common);
      bool had_this = false;
      if (child == nullptr || !claim(child, holder, tick, &had_this)) return false;
      had = had && had_this;
      if (had) held_bytes += child->edge_size;
    }
    if (child->inserts != Node::kMostInserts) ++child->inserts;
    text.remove_prefix(child->edge_size);
    known -= std::min<size_t>(known, child->edge_size);
    node = child;
  }
  if (held != nullptr) *held = held_bytes;
  const size_t share = std::min(limit, max_bytes_per_worker_);
  if (holder.worker < worker_bytes_.size() && worker_bytes_[holder.worker] > share - share / 16) {
    trim_worker(holder.worker, share);
  }
  return true;
}

size_t PrefixTree::withdraw(std::string_view text, Holder holder, size_t kept) {
  text = text.substr(0, max_text_);
  const auto own_claim = [&](const Node* node) {
    Claim* claim = claim_of(node, holder.worker);
    const bool lives = claim != nullptr && Claim::is_of(claim->who.load(std::memory_order_relaxed), holder.generation);
    return lives ? claim : nullptr;
  };
  // Nodes end where the text did when it was inserted, and where it left what the worker held then.
  Node* node = root_;
  size_t end = 0;
  while (end < text.size()) {
    Node* child = child_of(node, text[end]);
    if (child == nullptr || !text.substr(end).starts_with(child->edge()) || own_claim(child) == nullptr) break;
    end += child->edge_size;
    node = child;
  }
  const auto goes_on = [&](const Node* above) {
    bool any = false;
    each_child(above, [&](const Node* child) { any = any || own_claim(child) != nullptr; });
    return any;
  };
  size_t left = 0;
  while (node != root_ && end - node->edge_size >= kept) {
    if (goes_on(node)) {
      left = end;
      break;
    }
    Node* parent = node_at(node->parent);
    end -= node->edge_size;
    end_claim(node, *own_claim(node));
    if (node->children.load(std::memory_order_relaxed) == 0 && unheld(node)) remove_leaf(node);
    node = parent;
  }
  retired_.reclaim();
  return left;
}

// A child was never used more often than its parent: who looks at the most used first finds the most used of all.
PrefixIndexReport PrefixTree::report(size_t most) const {
  PrefixIndexReport report;
  for (uint32_t worker = 0; worker < worker_bytes_.size(); ++worker) {
    if (worker_bytes_[worker] > 0) report.worker_bytes.emplace_back(worker, worker_bytes_[worker]);
  }
  struct Step {
    const Node* node;
    size_t bytes;  // of the text up to its end
  };
  const auto less_used = [](const Step& a, const Step& b) { return a.node->inserts < b.node->inserts; };
  std::vector<Step> open{{root_, 0}};
  // A prefix of many megabytes is a chain of as many nodes: what is passed over is bounded too.
  for (size_t looks = 64 * most + 1024; !open.empty() && report.prefixes.size() < most && looks > 0; --looks) {
    std::ranges::pop_heap(open, less_used);
    const Step step = open.back();
    open.pop_back();
    size_t children = 0;
    uint32_t best = 0;
    each_child(step.node, [&](const Node* child) {
      ++children;
      best = std::max<uint32_t>(best, child->inserts);
      open.push_back({child, step.bytes + child->edge_size});
      std::ranges::push_heap(open, less_used);
    });
    // One that nearly all go on from in the same way says less than its continuation.
    const uint32_t its = step.node->inserts;
    if (step.node == root_ || best >= its - its / 10) continue;
    report.prefixes.push_back(describe(step.node, step.bytes, children));
  }
  return report;
}

PrefixIndexReport::Prefix PrefixTree::describe(const Node* node, size_t bytes, size_t children) const {
  constexpr size_t kShownHolders = 16;
  PrefixIndexReport::Prefix prefix{.bytes = bytes, .inserts = node->inserts, .continuations = children};
  std::string text(bytes, '\0');
  size_t begin = bytes;
  for (const Node* part = node; part != root_; part = node_at(part->parent)) {
    begin -= part->edge_size;
    part->edge().copy(text.data() + begin, part->edge_size);
  }
  prefix.hash = text_hash(text);
  each_claim(node, [&](const Claim& claim) {
    uint32_t worker = 0;
    if (!live(claim, &worker)) return;
    if (++prefix.num_holders <= kShownHolders) prefix.holders.push_back(worker);
  });
  return prefix;
}

uint32_t PrefixTree::sweep(uint32_t oldest) {
  uint32_t first_use = kNever;
  post_order([&](Node* node) {
    if (node == root_) return;
    bool unheld = true;
    each_claim(node, [&](Claim& claim) {
      if (claim.owner() == kNobody) return;
      const uint32_t used = claim.tick.load(std::memory_order_relaxed);
      const bool lives = Claim::is_of(claim.who.load(std::memory_order_relaxed), generations_.of(claim.owner()));
      // What lies below was never used later, and went before.
      if (lives && used >= oldest) {
        unheld = false;
        first_use = std::min(first_use, used);
      } else {
        (lives ? evictions_age_ : evictions_worker_).fetch_add(1, std::memory_order_relaxed);
        end_claim(node, claim);
      }
    });
    if (unheld && node->children.load(std::memory_order_relaxed) == 0) remove_leaf(node);
  });
  // Those that are gone are not looked for ever.
  std::erase_if(visits_, [&](const Visit& visit) { return worker_bytes_[visit.worker] == 0; });
  retired_.reclaim();
  return first_use;
}

PrefixTree::Ref PrefixTree::allocate(size_t bytes, const Node* keep) {
  const auto available = [&] { return heap_.bytes() - heap_.used_bytes() + retired_.bytes(); };
  while (available() < reserve_ + bytes && evict_oldest(keep)) {
  }
  if (retired_.bytes() > std::min(kReclaimBytes, reserve_ / 2)) retired_.reclaim();
  if (const Ref block = heap_.allocate(bytes); block != 0) return block;
  // There is room, but in pieces that are too small: more goes, up to a bound. When what went may not be freed because
  // somebody reads, waiting for that, or letting more go meanwhile, would be worse than to drop an insert.
  for (size_t more = kMoreBytes;;) {
    retired_.reclaim();
    if (const Ref block = heap_.allocate(bytes); block != 0) return block;
    const size_t waiting = retired_.bytes();
    if (waiting > reserve_ || more == 0 || !evict_oldest(keep)) return 0;
    more -= std::min(more, retired_.bytes() - waiting);
  }
}

bool PrefixTree::evict_oldest(const Node* keep) {
  int chances = kSecondChances;
  for (Ref ref = oldest_; ref != 0;) {
    Node* leaf = node_at(ref);
    ref = leaf->newer;
    if (leaf == keep) continue;
    if (leaf->used && chances-- > 0) {
      dequeue(leaf);
      enqueue(leaf, true);
      if (ref == 0) ref = oldest_;
      continue;
    }
    if (ref != 0) __builtin_prefetch(node_at(ref), 1);
    remove_leaf(leaf);
    // It is the next one to go.
    if (oldest_ != 0) __builtin_prefetch(node_at(node_at(oldest_)->parent), 1);
    evictions_budget_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  return false;
}

PrefixTree::Node* PrefixTree::new_node(std::string_view edge, const Node* keep) {
  const Ref block = allocate(sizeof(Node) + edge.size(), keep);
  if (block == 0) return nullptr;
  auto* node = new (heap_.at<void>(block)) Node;
  node->edge_size = static_cast<uint16_t>(edge.size());
  node->born = ++births_;
  edge.copy(node->edge_data(), edge.size());
  return node;
}

// An empty table in `block`, as large as the block allows.
PrefixTree::Children* PrefixTree::new_children(Ref block) {
  auto* table = new (heap_.at<void>(block)) Children;
  auto capacity = static_cast<uint32_t>((heap_.usable_bytes(block) - sizeof(Children)) / (sizeof(Ref) + 1));
  while (Children::bytes(capacity) > heap_.usable_bytes(block)) --capacity;
  table->capacity = static_cast<uint16_t>(std::min<uint32_t>(capacity, 256));
  return table;
}

bool PrefixTree::add_child(Node* parent, Node* child) {
  const char first = child->edge().front();
  const Ref block = heap_.ref_of(child);
  const auto put = [&] {
    const Ref old = parent->children.load(std::memory_order_relaxed);
    if (old == 0) return false;
    auto* table = heap_.at<Children>(old);
    if (std::atomic<Ref>* gone = table->find(first); gone != nullptr) {
      gone->store(block, std::memory_order_seq_cst);
      ++table->live;
      return true;
    }
    if (table->size.load(std::memory_order_relaxed) == table->capacity) return false;
    table->append(first, block);
    return true;
  };
  if (put()) return true;
  const Ref old = parent->children.load(std::memory_order_relaxed);
  const uint32_t live = old == 0 ? 0 : heap_.at<Children>(old)->live;
  const Ref larger = allocate(Children::bytes(live + live / 2 + 2), parent);
  if (larger == 0) return false;
  // Making room may have taken children away.
  move_children(parent, larger);
  return put();
}

// To a table in `block`, without those that are gone.
void PrefixTree::move_children(Node* parent, Ref block) {
  Children* table = new_children(block);
  const Ref old = parent->children.load(std::memory_order_relaxed);
  if (old != 0) {
    auto* from = heap_.at<Children>(old);
    for (uint32_t i = 0; i < from->size.load(std::memory_order_relaxed); ++i) {
      const Ref child = from->nodes()[i].load(std::memory_order_relaxed);
      if (child != 0) table->append(static_cast<char>(from->keys()[i]), child);
    }
  }
  parent->children.store(block, std::memory_order_seq_cst);
  if (old != 0) retired_.retire(old);
}

// Needs no memory, or evicting could not free any.
void PrefixTree::remove_child(Node* parent, Node* child) {
  const Ref block = parent->children.load(std::memory_order_relaxed);
  auto* table = heap_.at<Children>(block);
  std::atomic<Ref>* entry = table->find(child->edge().front());
  SLUICE_CHECK(entry != nullptr && *entry == heap_.ref_of(child),
               "a node of the prefix tree is not its parent's child");
  entry->store(0, std::memory_order_seq_cst);
  if (--table->live == 0) {
    parent->children.store(0, std::memory_order_seq_cst);
    retired_.retire(block);
  } else if (table->capacity >= 32 && table->live < table->capacity / 4) {
    if (const Ref smaller = heap_.allocate(Children::bytes(2 * table->live)); smaller != 0)
      move_children(parent, smaller);
  }
}

PrefixTree::Node* PrefixTree::add_leaf(Node* parent, std::string_view edge, Holder holder, uint32_t tick) {
  Node* leaf = new_node(edge, parent);
  if (leaf == nullptr) return nullptr;
  leaf->parent = heap_.ref_of(parent);
  leaf->first.begin(Claim::word_of(holder), tick);
  if (!add_child(parent, leaf)) {
    heap_.free(heap_.ref_of(leaf));
    return nullptr;
  }
  nodes_.fetch_add(1, std::memory_order_relaxed);
  count_bytes(holder.worker, edge.size());
  dequeue(parent);  // no leaf any more
  enqueue(leaf, true);
  return leaf;
}

void PrefixTree::remove_leaf(Node* leaf) {
  Node* parent = node_at(leaf->parent);
  remove_child(parent, leaf);
  dequeue(leaf);
  each_claim(leaf, [&](const Claim& claim) {
    if (claim.owner() != kNobody) worker_bytes_[claim.owner()] -= leaf->edge_size;
  });
  each_table(leaf, [&](Ref table) { retired_.retire(table); });
  retired_.retire(heap_.ref_of(leaf));
  nodes_.fetch_sub(1, std::memory_order_relaxed);
  // The parent may be a leaf now. If it was not used on its own since, it is as old as what went.
  if (parent != root_ && parent->children.load(std::memory_order_relaxed) == 0) {
    enqueue(parent, last_use(parent) > last_use(leaf));
  }
}

PrefixTree::Node* PrefixTree::split(Node* node, size_t length) {
  uint32_t holders = 0;
  each_claim(node, [&](const Claim& claim) { holders += claim.owner() != kNobody ? 1 : 0; });
  Node* upper = new_node(node->edge().substr(0, length), node);
  Node* lower = upper == nullptr ? nullptr : new_node(node->edge().substr(length), node);
  const Ref children = lower == nullptr ? 0 : allocate(Children::bytes(2), node);
  // The upper half starts with a copy of the claims.
  const bool failed = children == 0 || any_claim(node, [&](const Claim& claim) {
                        if (claim.owner() == kNobody) return false;
                        Claim* copy =
                            upper->first.owner() == kNobody ? &upper->first : new_claim(upper, holders - 1, node);
                        if (copy != nullptr) copy->begin_as(claim);
                        return copy == nullptr;
                      });
  if (failed) {
    for (Node* half : {upper, lower}) {
      if (half == nullptr) continue;
      each_table(half, [&](Ref table) { heap_.free(table); });
      heap_.free(heap_.ref_of(half));
    }
    if (children != 0) heap_.free(children);
    return nullptr;
  }

  // The lower one takes over the tables.
  lower->first.begin_as(node->first);
  lower->claims.store(node->claims.load(std::memory_order_relaxed), std::memory_order_relaxed);
  lower->further.store(node->further.load(std::memory_order_relaxed), std::memory_order_relaxed);
  lower->children.store(node->children.load(std::memory_order_relaxed), std::memory_order_relaxed);
  each_child(lower, [&](Node* child) { child->parent = heap_.ref_of(lower); });
  upper->parent = node->parent;
  lower->parent = heap_.ref_of(upper);
  new_children(children)->append(lower->edge().front(), heap_.ref_of(lower));
  upper->children.store(children, std::memory_order_relaxed);
  if (node->queued) replace_in_queue(node, lower);
  upper->inserts = lower->inserts = node->inserts;

  Children* table = heap_.at<Children>(node_at(node->parent)->children.load(std::memory_order_relaxed));
  table->find(node->edge().front())->store(heap_.ref_of(upper), std::memory_order_seq_cst);
  retired_.retire(heap_.ref_of(node));
  nodes_.fetch_add(1, std::memory_order_relaxed);
  return upper;
}

bool PrefixTree::claim(Node* node, Holder holder, uint32_t tick, bool* had) {
  if (!node->used) node->used = true;
  Claim* vacant = nullptr;
  bool found = false;
  each_claim(node, [&](Claim& claim) {
    if (claim.owner() == holder.worker) {
      *had = Claim::is_of(claim.who.load(std::memory_order_relaxed), holder.generation);
      claim.begin(Claim::word_of(holder), tick);
      found = true;
    } else if (claim.owner() == kNobody) {
      vacant = &claim;
    }
  });
  if (found) return true;
  if (vacant == nullptr) vacant = new_claim(node, 0, node);
  if (vacant == nullptr) return false;
  vacant->begin(Claim::word_of(holder), tick);
  count_bytes(holder.worker, node->edge_size);
  return true;
}

// A claim after the node's last, of nobody yet. The last table is made larger if it is full, by a quarter, or so that
// `expected` claims have room in all tables.
PrefixTree::Claim* PrefixTree::new_claim(Node* node, uint32_t expected, const Node* keep) {
  const uint32_t further = node->further.load(std::memory_order_relaxed);
  if (further == UINT16_MAX) return nullptr;
  std::atomic<Ref>* last = &node->claims;
  uint32_t before = 0;  // in the tables before the last
  for (; further - before >= kTableClaims; before += kTableClaims) last = &next_table(last->load());
  const uint32_t here = further - before;
  const Ref old = here == 0 ? 0 : last->load(std::memory_order_relaxed);
  const auto bytes = [](uint32_t n) { return n * sizeof(Claim) + (n == kTableClaims ? sizeof(Ref) : 0); };
  if (old == 0 || bytes(here + 1) > heap_.usable_bytes(old)) {
    const uint32_t wanted =
        std::min(kTableClaims, std::max(here + here / 4 + 1, expected - std::min(expected, before)));
    const Ref larger = allocate(bytes(wanted), keep);
    if (larger == 0) return nullptr;
    for (uint32_t i = 0; i < here; ++i) {
      auto* to = new (heap_.at<Claim>(larger) + i) Claim;
      to->begin_as(heap_.at<Claim>(old)[i]);
    }
    last->store(larger, std::memory_order_seq_cst);
    if (old != 0) retired_.retire(old);
  }
  auto* claim = new (heap_.at<Claim>(last->load(std::memory_order_relaxed)) + here) Claim;
  node->further.store(static_cast<uint16_t>(further + 1), std::memory_order_release);
  return claim;
}

template <class Function>
void PrefixTree::each_table(Node* node, Function visit) {
  Ref table = node->claims.load(std::memory_order_relaxed);
  for (uint32_t left = node->further.load(std::memory_order_relaxed); left > 0;) {
    const Ref next = left > kTableClaims ? next_table(table).load(std::memory_order_relaxed) : 0;
    visit(table);
    table = next;
    left -= std::min(left, kTableClaims);
  }
}

void PrefixTree::end_claim(Node* node, Claim& claim) {
  worker_bytes_[claim.owner()] -= node->edge_size;
  claim.who.store(kNobody, std::memory_order_release);
}

// The claim of a worker that has too many.
void PrefixTree::drop_of_full(Node* node, Claim& claim) {
  end_claim(node, claim);
  evictions_size_.fetch_add(1, std::memory_order_relaxed);
  dropped_ = dropped_ * kRememberDrops + static_cast<float>(node->edge_size);
  dropped_shared_ = dropped_shared_ * kRememberDrops + (node->inserts > 1 ? static_cast<float>(node->edge_size) : 0);
  shared_drops_.store(dropped_shared_ / dropped_, std::memory_order_relaxed);
}

void PrefixTree::count_bytes(uint32_t worker, size_t bytes) {
  if (worker_bytes_.size() <= worker) worker_bytes_.resize(worker + 1);
  worker_bytes_[worker] += bytes;
}

void PrefixTree::enqueue(Node* leaf, bool as_newest) {
  const Ref ref = heap_.ref_of(leaf);
  leaf->queued = true;
  leaf->used = false;
  leaf->older = as_newest ? newest_ : 0;
  leaf->newer = as_newest ? 0 : oldest_;
  (leaf->older == 0 ? oldest_ : node_at(leaf->older)->newer) = ref;
  (leaf->newer == 0 ? newest_ : node_at(leaf->newer)->older) = ref;
}

void PrefixTree::dequeue(Node* node) {
  if (!node->queued) return;
  move_visits(node, node->newer);
  (node->older == 0 ? oldest_ : node_at(node->older)->newer) = node->newer;
  (node->newer == 0 ? newest_ : node_at(node->newer)->older) = node->older;
  node->queued = false;
}

// Whoever is to visit `node` next visits `next` instead.
void PrefixTree::move_visits(Node* node, Ref next) {
  if (!node->visited) return;
  node->visited = false;
  if (next != 0) node_at(next)->visited = true;
  for (Visit& visit : visits_) {
    if (visit.at == heap_.ref_of(node)) visit.at = next;
  }
}

void PrefixTree::replace_in_queue(Node* node, Node* with) {
  move_visits(node, heap_.ref_of(with));
  with->queued = true;
  with->used = node->used;
  with->older = node->older;
  with->newer = node->newer;
  (node->older == 0 ? oldest_ : node_at(node->older)->newer) = heap_.ref_of(with);
  (node->newer == 0 ? newest_ : node_at(node->newer)->older) = heap_.ref_of(with);
}

// Takes claims of a worker that is near its share or beyond: those on leaves that were not used since they came into
// the queue, oldest first, and those that end above the leaves of others. The visit goes on where it stopped, so that
// leaves with nothing to take are passed once a round.
void PrefixTree::trim_worker(uint32_t worker, size_t share) {
  const size_t goal = share - share / 64;
  auto visit = std::find_if(visits_.begin(), visits_.end(), [&](const Visit& v) { return v.worker == worker; });
  if (visit == visits_.end()) visit = visits_.insert(visit, {worker, 0});
  const auto over = [&](size_t bytes) { return worker_bytes_[worker] > bytes; };
  int rounds = 0;
  for (int steps = 0; over(share) || (over(goal) && steps < kTrimSteps); ++steps) {
    if (visit->at == 0) {
      // Twice around, and what there is to take stands on inner nodes under which the worker has nothing.
      if (++rounds > 2) return trim_everywhere(worker, goal);
      visit->at = oldest_;
      if (visit->at == 0) return;
    }
    Node* leaf = node_at(visit->at);
    visit->at = leaf->newer;
    if (visit->at != 0) node_at(visit->at)->visited = true;
    Node* held = leaf;
    while (held != root_ && claim_of(held, worker) == nullptr) held = node_at(held->parent);
    if (held == root_) continue;
    if (held == leaf && leaf->used) {
      dequeue(leaf);
      enqueue(leaf, true);
    } else if (held == leaf || !claims_below(held, worker)) {
      take_claims(held, worker, last_use(leaf));
    }
  }
}

bool PrefixTree::claims_below(const Node* node, uint32_t worker) const {
  bool any = false;
  each_child(node, [&](const Node* child) { any = any || claim_of(child, worker) != nullptr; });
  return any;
}

// The worker's claim on the node and those above that it had for this one only, as far as they were not used after
// `last`.
void PrefixTree::take_claims(Node* node, uint32_t worker, uint32_t last) {
  for (;;) {
    Claim* claim = claim_of(node, worker);
    if (claim == nullptr || claim->tick.load(std::memory_order_relaxed) > last) return;
    Node* parent = node_at(node->parent);
    drop_of_full(node, *claim);
    if (node->children.load(std::memory_order_relaxed) == 0 && unheld(node)) remove_leaf(node);
    if (claims_below(parent, worker)) return;
    node = parent;
  }
}

// The same by a walk over the whole tree, least recently used first.
void PrefixTree::trim_everywhere(uint32_t worker, size_t goal) {
  struct Held {
    uint32_t tick;
    Ref node;
  };
  std::vector<Held> held;
  post_order([&](Node* node) {
    const Claim* claim = claim_of(node, worker);
    if (claim != nullptr) held.push_back({claim->tick.load(std::memory_order_relaxed), heap_.ref_of(node)});
  });
  // Children come before their parents in the walk and are never used later than them, so a stable order by last use
  // takes a claim only after all claims below it.
  std::stable_sort(held.begin(), held.end(), [](const Held& a, const Held& b) { return a.tick < b.tick; });
  for (const Held& item : held) {
    if (worker_bytes_[worker] <= goal) break;
    Node* node = node_at(item.node);
    drop_of_full(node, *claim_of(node, worker));
    if (node->children.load(std::memory_order_relaxed) == 0 && unheld(node)) remove_leaf(node);
  }
}

PrefixTree::Claim* PrefixTree::claim_of(const Node* node, uint32_t worker) const {
  Claim* found = nullptr;
  (void)any_claim(node, [&](Claim& claim) { return claim.owner() == worker && (found = &claim) != nullptr; });
  return found;
}

uint32_t PrefixTree::last_use(const Node* node) const {
  uint32_t last = 0;
  each_claim(node, [&](const Claim& claim) {
    if (claim.owner() != kNobody) last = std::max(last, claim.tick.load(std::memory_order_relaxed));
  });
  return last;
}

bool PrefixTree::unheld(const Node* node) const {
  return !any_claim(node, [](const Claim& claim) { return claim.owner() != kNobody; });
}

template <class Function>
void PrefixTree::each_child(const Node* node, Function visit) const {
  const Ref block = node->children.load(std::memory_order_relaxed);
  if (block == 0) return;
  auto* table = heap_.at<Children>(block);
  for (uint32_t i = 0; i < table->size.load(std::memory_order_relaxed); ++i) {
    if (const Ref child = table->nodes()[i].load(std::memory_order_relaxed); child != 0) visit(node_at(child));
  }
}

// Calls `visit` for every node, children first. `visit` may free the node that it is given.
template <class Function>
void PrefixTree::post_order(Function visit) {
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
    each_child(node, [&](Node* child) { stack.push_back({child, false}); });
  }
}

}  // namespace sluice::routing
