// When each request that is being served began, for the count by age. A request costs two plain stores: the places are
// written by one loop and may be read by any thread at any time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace sluice::gateway {

class LiveRequests {
  using Slot = std::atomic<int64_t>;  // steady nanoseconds

 public:
  LiveRequests() { add_block(first_); }
  ~LiveRequests() {
    for (Block* block = first_.next; block != nullptr;) delete std::exchange(block, block->next.load());
  }
  LiveRequests(const LiveRequests&) = delete;
  LiveRequests& operator=(const LiveRequests&) = delete;

  // Loop thread only. Given back when it goes, which is before the LiveRequests does.
  class Place {
   public:
    Place(LiveRequests& of, Slot* slot) : of_(of), slot_(slot) {}
    Place(Place&& other) noexcept : of_(other.of_), slot_(std::exchange(other.slot_, nullptr)) {}
    ~Place() {
      if (slot_ == nullptr) return;
      slot_->store(kFree, std::memory_order_relaxed);
      of_.free_.push_back(slot_);
    }
    Place& operator=(Place&&) = delete;

   private:
    LiveRequests& of_;
    Slot* slot_;
  };
  Place enter(TimePoint begun) {
    if (free_.empty()) {
      auto block = std::make_unique<Block>();
      add_block(*block);
      Block* last = &first_;
      while (Block* next = last->next.load(std::memory_order_relaxed)) last = next;
      last->next.store(block.release(), std::memory_order_release);
    }
    Slot* slot = free_.back();
    free_.pop_back();
    slot->store(begun.time_since_epoch().count(), std::memory_order_relaxed);
    return {*this, slot};
  }

  // Any thread: what is served now, in no order.
  template <class F>
  void each_begun(F&& see) const {
    for (const Block* block = &first_; block != nullptr; block = block->next.load(std::memory_order_acquire)) {
      for (const Slot& slot : block->slots) {
        const int64_t begun = slot.load(std::memory_order_relaxed);
        if (begun != kFree) see(TimePoint(Duration(begun)));
      }
    }
  }

 private:
  static constexpr int64_t kFree = std::numeric_limits<int64_t>::min();
  struct Block {
    Block() {
      for (Slot& slot : slots) slot.store(kFree, std::memory_order_relaxed);
    }
    std::array<Slot, 255> slots;
    std::atomic<Block*> next{nullptr};  // never shorter: as many places as requests were served at once
  };
  void add_block(Block& block) {
    for (Slot& slot : block.slots) free_.push_back(&slot);
  }

  Block first_;
  std::vector<Slot*> free_;  // loop thread only
};

}  // namespace sluice::gateway
