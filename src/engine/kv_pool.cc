#include "engine/kv_pool.h"

#include "base/check.h"

namespace sluice::engine {

KvPool::KvPool(int64_t slots) : in_use_(static_cast<size_t>(slots), 0) {
  SLUICE_CHECK(slots >= 1 && slots <= INT32_MAX, "KV pool of {} slots", slots);
  // Low slots go out first, so that a pool that is hardly used touches little memory.
  free_.reserve(static_cast<size_t>(slots - 1));
  for (int64_t slot = slots - 1; slot > 0; --slot) free_.push_back(static_cast<int32_t>(slot));
}

bool KvPool::alloc(int64_t n, std::vector<int32_t>& out) {
  if (n > available()) return false;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t slot = free_.back();
    free_.pop_back();
    in_use_[static_cast<size_t>(slot)] = 1;
    out.push_back(slot);
  }
  return true;
}

void KvPool::free(int32_t slot) {
  SLUICE_CHECK(slot > 0 && slot <= capacity(), "freeing slot {} of a pool of {}", slot, capacity());
  SLUICE_CHECK(in_use_[static_cast<size_t>(slot)], "slot {} is freed twice", slot);
  in_use_[static_cast<size_t>(slot)] = 0;
  free_.push_back(slot);
}

void KvPool::free(std::span<const int32_t> slots) {
  for (const int32_t slot : slots) free(slot);
}

}  // namespace sluice::engine
