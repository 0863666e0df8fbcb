#include "routing/epoch.h"

#include <algorithm>
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

uint64_t oldest_reader() {
  uint64_t oldest = std::numeric_limits<uint64_t>::max();
  for (EpochSlot* slot = slots.load(std::memory_order_seq_cst); slot != nullptr; slot = slot->next) {
    const uint64_t epoch = slot->epoch.load(std::memory_order_seq_cst);
    if (epoch != 0) oldest = std::min(oldest, epoch);
  }
  return oldest;
}

}  // namespace internal

void RetireList::retire(FixedHeap::Ref block) {
  bytes_ += heap_.footprint(block);
  items_.push_back({block, internal::global_epoch.load(std::memory_order_seq_cst)});
}

void RetireList::reclaim() {
  if (items_.empty()) return;
  // Readers that start from here on cannot reach what is in the list.
  internal::global_epoch.fetch_add(1, std::memory_order_seq_cst);
  const uint64_t oldest = internal::oldest_reader();
  auto item = items_.begin();
  for (; item != items_.end() && item->epoch < oldest; ++item) {
    bytes_ -= heap_.footprint(item->block);
    heap_.free(item->block);
  }
  items_.erase(items_.begin(), item);
}

}  // namespace sluice::routing
