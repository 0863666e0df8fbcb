#include "routing/block_index.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace sluice::routing {
namespace {

constexpr uint32_t kNobody = ~uint32_t{0};
constexpr size_t kReclaimBytes = 64 << 10;

// Blocks of other sizes have other names, whatever their tokens.
BlockName root_of(size_t block_size) { return block_size; }

BlockName extend(BlockName before, std::span<const int32_t> tokens) {
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), before);
}

}  // namespace

void name_blocks(std::span<const int32_t> tokens, size_t block_size, std::vector<BlockName>& names) {
  names.clear();
  BlockName name = root_of(block_size);
  for (size_t at = 0; at + block_size <= tokens.size(); at += block_size) {
    name = extend(name, tokens.subspan(at, block_size));
    names.push_back(name);
  }
}

// One block and who holds it. The table of holders grows in a copy; a place in it is used again.
struct BlockIndex::Node {
  const BlockName name;
  std::atomic<Ref> next;  // in the same bucket
  const uint32_t capacity;
  std::atomic<uint32_t> size;  // places that were ever used
  uint32_t live = 0;           // writer thread

  Node(BlockName of, uint32_t places) : name(of), next(0), capacity(places), size(0) {}
  static size_t bytes(uint32_t places) { return sizeof(Node) + places * sizeof(std::atomic<uint32_t>); }

  std::atomic<uint32_t>* holders() { return reinterpret_cast<std::atomic<uint32_t>*>(this + 1); }
  const std::atomic<uint32_t>* holders() const { return reinterpret_cast<const std::atomic<uint32_t>*>(this + 1); }
  template <class Visit>
  void each_holder(Visit visit) const {
    const uint32_t used = size.load(std::memory_order_acquire);
    for (uint32_t i = 0; i < used; ++i) {
      const uint32_t holder = holders()[i].load(std::memory_order_relaxed);
      if (holder != kNobody) visit(holder);
    }
  }
  bool is_held_by(uint32_t worker) const {
    bool held = false;
    each_holder([&](uint32_t holder) { held = held || holder == worker; });
    return held;
  }
  // False if there is no place left.
  bool add(uint32_t worker) {
    const uint32_t used = size.load(std::memory_order_relaxed);
    uint32_t place = used;
    for (uint32_t i = 0; i < used && live < used; ++i) {
      if (holders()[i].load(std::memory_order_relaxed) == kNobody) place = i;
    }
    if (place == capacity) return false;
    if (place == used) {
      new (&holders()[place]) std::atomic<uint32_t>(worker);
      size.store(used + 1, std::memory_order_release);
    } else {
      holders()[place].store(worker, std::memory_order_relaxed);
    }
    ++live;
    return true;
  }
  void remove(uint32_t worker) {
    for (uint32_t i = 0; i < size.load(std::memory_order_relaxed); ++i) {
      if (holders()[i].load(std::memory_order_relaxed) != worker) continue;
      holders()[i].store(kNobody, std::memory_order_relaxed);
      --live;
    }
  }
};

BlockIndex::BlockIndex(size_t budget_bytes) : budget_(budget_bytes), heap_(budget_bytes), retired_(heap_) {
  // A bucket for every block that there is room for, held by one worker.
  const size_t buckets = std::bit_floor(budget_bytes / (kHeldBytes + Node::bytes(2)));
  buckets_ = heap_.allocate(buckets * sizeof(std::atomic<Ref>));
  SLUICE_CHECK(buckets_ != 0, "no room for {} buckets in {} bytes", buckets, budget_bytes);
  for (size_t i = 0; i < buckets; ++i) new (heap_.at<std::atomic<Ref>>(buckets_) + i) std::atomic<Ref>(0);
  mask_ = buckets - 1;
}

std::atomic<BlockIndex::Ref>& BlockIndex::bucket_of(BlockName name) const {
  return heap_.at<std::atomic<Ref>>(buckets_)[name & mask_];
}

std::atomic<BlockIndex::Ref>& BlockIndex::place_of(BlockName name) const {
  std::atomic<Ref>* place = &bucket_of(name);
  for (;;) {
    const Ref ref = place->load(std::memory_order_seq_cst);
    if (ref == 0 || heap_.at<Node>(ref)->name == name) return *place;
    place = &heap_.at<Node>(ref)->next;
  }
}

const BlockIndex::Node* BlockIndex::find(BlockName name) const {
  const Ref ref = place_of(name).load(std::memory_order_seq_cst);
  return ref == 0 ? nullptr : heap_.at<Node>(ref);
}

namespace {

// Which workers were met, by number, so that many holders of a block cost no more than to go through them once.
class Met {
 public:
  void begin() { ++now_; }
  // False if it was met already: a holder that is taken out and put back may stand in two places for a moment.
  bool add(uint32_t worker) {
    if (worker >= met_.size()) met_.resize(worker + 1);
    return std::exchange(met_[worker], now_) != now_;
  }
  bool has(uint32_t worker) const { return worker < met_.size() && met_[worker] == now_; }

 private:
  std::vector<uint64_t> met_;
  uint64_t now_ = 0;
};

thread_local Met met;

}  // namespace

// Moves those who hold the block to the front, and returns how many they are.
size_t BlockIndex::keep_holders(const Node* node, std::span<Depth> of) {
  if (node == nullptr) return 0;
  met.begin();
  node->each_holder([](uint32_t worker) { met.add(worker); });
  const auto rest = std::partition(of.begin(), of.end(), [](const Depth& depth) { return met.has(depth.worker); });
  return static_cast<size_t>(rest - of.begin());
}

void BlockIndex::match(std::span<const BlockName> names, std::vector<Depth>& found, size_t stride) const {
  found.clear();
  if (names.empty()) return;
  const EpochGuard guard;
  const Node* first = find(names[0]);
  if (first == nullptr) return;
  met.begin();
  first->each_holder([&](uint32_t worker) {
    if (met.add(worker)) found.push_back({worker, 1});
  });
  // Those who hold all blocks so far stand in front.
  size_t all = found.size();
  for (size_t known = 1; known < names.size() && all > 0;) {
    const auto goes_on = [&](size_t at) { return keep_holders(find(names[at]), std::span(found).first(all)); };
    const auto advance = [&](size_t to) {
      for (size_t i = 0; i < all; ++i) found[i].blocks = static_cast<uint32_t>(to);
      known = to;
    };
    const size_t far = std::min(known + stride, names.size());
    if (far > known + 1 && goes_on(far - 1) == all) {
      advance(far);
      continue;
    }
    // Somebody's part ends here: block for block.
    for (size_t at = known; at < far && all > 0; ++at) {
      all = goes_on(at);
      advance(at + 1);
    }
  }
}

BlockIndex::Ref BlockIndex::allocate(size_t bytes) {
  if (retired_.bytes() > kReclaimBytes) retired_.reclaim();
  if (this->bytes() + bytes + sizeof(uint64_t) > budget_) {
    retired_.reclaim();
    if (this->bytes() + bytes + sizeof(uint64_t) > budget_) return 0;
  }
  return heap_.allocate(bytes);
}

bool BlockIndex::hold(uint32_t worker, BlockName name) {
  std::atomic<Ref>& place = place_of(name);
  const Ref old = place.load(std::memory_order_relaxed);
  if (old != 0 && (heap_.at<Node>(old)->is_held_by(worker) || heap_.at<Node>(old)->add(worker))) return true;
  const uint32_t places = old == 0 ? 2 : heap_.at<Node>(old)->capacity * 2;
  const Ref ref = allocate(Node::bytes(places));
  if (ref == 0) return false;
  Node* node = new (heap_.at<Node>(ref)) Node(name, places);
  if (old != 0) {
    heap_.at<Node>(old)->each_holder([&](uint32_t holder) { node->add(holder); });
    node->next.store(heap_.at<Node>(old)->next.load(std::memory_order_relaxed), std::memory_order_relaxed);
  }
  node->add(worker);
  place.store(ref, std::memory_order_seq_cst);
  if (old != 0) retired_.retire(old);
  return true;
}

void BlockIndex::release(uint32_t worker, BlockName name) {
  std::atomic<Ref>& place = place_of(name);
  const Ref ref = place.load(std::memory_order_relaxed);
  if (ref == 0) return;
  Node* node = heap_.at<Node>(ref);
  node->remove(worker);
  if (node->live > 0) return;
  place.store(node->next.load(std::memory_order_relaxed), std::memory_order_seq_cst);
  retired_.retire(ref);
}

BlockIndex::Stored BlockIndex::store(uint32_t worker, uint64_t hash, std::optional<uint64_t> parent,
                                     std::span<const int32_t> tokens) {
  Names& names = names_[worker];
  BlockName before = root_of(tokens.size());
  if (parent) {
    const auto known = names.find(*parent);
    if (known == names.end()) return Stored::kNoParent;
    before = known->second;
  }
  const BlockName name = extend(before, tokens);
  const auto known = names.find(hash);
  if (known != names.end() && known->second == name) return Stored::kKnown;
  if (bytes() + kHeldBytes > budget_) retired_.reclaim();
  if (bytes() + kHeldBytes > budget_ || !hold(worker, name)) return Stored::kFull;
  if (known != names.end()) {
    release(worker, known->second);
    known->second = name;
    return Stored::kConflict;
  }
  names.emplace(hash, name);
  held_.fetch_add(1, std::memory_order_relaxed);
  return Stored::kNew;
}

bool BlockIndex::remove(uint32_t worker, uint64_t hash) {
  const auto names = names_.find(worker);
  if (names == names_.end()) return false;
  const auto known = names->second.find(hash);
  if (known == names->second.end()) return false;
  release(worker, known->second);
  names->second.erase(known);
  held_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

void BlockIndex::clear(uint32_t worker) {
  const auto names = names_.find(worker);
  if (names == names_.end()) return;
  for (const auto& [hash, name] : names->second) release(worker, name);
  held_.fetch_sub(names->second.size(), std::memory_order_relaxed);
  names_.erase(names);
  retired_.reclaim();
}

size_t BlockIndex::blocks_of(uint32_t worker) const {
  const auto names = names_.find(worker);
  return names == names_.end() ? 0 : names->second.size();
}

}  // namespace sluice::routing
