// Epoch-based reclamation (Fraser 2004) for one writer and any number of readers: a reader announces the epoch in which
// it reads, and what the writer unlinked in an epoch is freed once every announced epoch is later.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "routing/fixed_heap.h"

namespace sluice::routing {

namespace internal {

// One reading thread's announcement; 0 = not reading. Slots are handed to threads and taken back when they end; they
// are never freed.
struct alignas(64) EpochSlot {
  std::atomic<uint64_t> epoch{0};
  std::atomic<bool> taken{true};
  EpochSlot* next = nullptr;  // constant after publication
};

// This thread's slot.
EpochSlot& epoch_slot();
inline constinit std::atomic<uint64_t> global_epoch{1};
// The oldest epoch in which somebody reads, or the largest number.
uint64_t oldest_reader();

}  // namespace internal

// While it lives, nothing that this thread can reach is freed. Not nestable.
class EpochGuard {
 public:
  EpochGuard() : slot_(internal::epoch_slot()) {
    // Sequentially consistent, as are the loads of shared pointers that follow and the writer's unlinking: either the
    // writer's scan sees this announcement, or this reader sees the unlinked state.
    slot_.epoch.store(internal::global_epoch.load(std::memory_order_seq_cst), std::memory_order_seq_cst);
  }
  ~EpochGuard() { slot_.epoch.store(0, std::memory_order_release); }
  EpochGuard(const EpochGuard&) = delete;
  EpochGuard& operator=(const EpochGuard&) = delete;

 private:
  internal::EpochSlot& slot_;
};

// What the writer unlinked from its tree and may not free yet. Writer thread only.
class RetireList {
 public:
  explicit RetireList(FixedHeap& heap) : heap_(heap) {}

  void retire(FixedHeap::Ref block);
  // Frees what no reader can reach any more.
  void reclaim();
  size_t bytes() const { return bytes_; }

 private:
  struct Item {
    FixedHeap::Ref block;
    uint64_t epoch;
  };
  FixedHeap& heap_;
  std::vector<Item> items_;  // in the order of their epochs
  size_t bytes_ = 0;         // of the items
};

}  // namespace sluice::routing
