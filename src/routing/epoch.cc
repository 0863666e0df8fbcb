#include "routing/epoch.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

namespace sluice::routing {
namespace internal {
namespace {

std::atomic<EpochSlot*> slots{nullptr};

EpochSlot* take_slot() {
  for (EpochSlot* slot = slots.load(std::memory_order_acquire); slot != nullptr; slot = slot->next) {
    bool free = false;
    if (slot->taken.compare_exchange_strong(free, true, std::memory_order_acq_rel)) return slot;
  }
  auto* slot = new EpochSlot;  // lives as long as the process
  slot->next = slots.load(std::memory_order_relaxed);
  while (!slots.compare_exchange_weak(slot->next, slot, std::memory_order_acq_rel)) {
  }
  return slot;
}

struct SlotOwner {
  EpochSlot* slot = take_slot();
  ~SlotOwner() {
    slot->epoch.store(0, std::memory_order_release);
    slot->taken.store(false, std::memory_order_release);
  }
};

}  // namespace

EpochSlot& epoch_slot() {
  thread_local SlotOwner owner;
  return *owner.slot;
}

std::atomic<uint64_t>& global_epoch() {
  static std::atomic<uint64_t> epoch{1};
  return epoch;
}

uint64_t oldest_reader() {
  uint64_t oldest = std::numeric_limits<uint64_t>::max();
  for (EpochSlot* slot = slots.load(std::memory_order_seq_cst); slot != nullptr; slot = slot->next) {
    const uint64_t epoch = slot->epoch.load(std::memory_order_seq_cst);
    if (epoch != 0) oldest = std::min(oldest, epoch);
  }
  return oldest;
}

}  // namespace internal

RetireList::~RetireList() {
  for (const Item& item : items_) std::free(item.memory);
}

void RetireList::retire(void* memory, size_t bytes) {
  bytes_ += bytes;
  items_.push_back({memory, bytes, internal::global_epoch().load(std::memory_order_seq_cst)});
}

size_t RetireList::reclaim() {
  if (items_.empty()) return 0;
  // Readers that start from here on cannot reach what is in the list.
  internal::global_epoch().fetch_add(1, std::memory_order_seq_cst);
  const uint64_t oldest = internal::oldest_reader();
  size_t freed = 0;
  size_t kept = 0;
  for (const Item& item : items_) {
    if (item.epoch < oldest) {
      std::free(item.memory);
      freed += item.bytes;
    } else {
      items_[kept++] = item;
    }
  }
  items_.resize(kept);
  bytes_ -= freed;
  return freed;
}

}  // namespace sluice::routing
