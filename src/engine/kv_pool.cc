#include "engine/kv_pool.h"

#include "base/check.h"

namespace sluice::engine {

KvPool::KvPool(int64_t slots, int64_t page_size)
    : page_size_(page_size), in_use_(static_cast<size_t>(slots / page_size), 0) {
  SLUICE_CHECK(page_size >= 1 && slots >= page_size && slots <= INT32_MAX, "KV pool of {} slots in pages of {}", slots,
               page_size);
  // Low pages go out first, so that a pool that is hardly used touches little memory.
  free_.reserve(in_use_.size() - 1);
  for (auto page = static_cast<int32_t>(in_use_.size()); --page > 0;) free_.push_back(page);
}

bool KvPool::alloc(int64_t n, std::vector<int32_t>& out) {
  SLUICE_CHECK(n % page_size_ == 0, "{} slots are no whole pages of {}", n, page_size_);
  if (n > available()) return false;
  for (int64_t left = n / page_size_; left > 0; --left) {
    const int32_t page = free_.back();
    free_.pop_back();
    in_use_[static_cast<size_t>(page)] = 1;
    const auto first = static_cast<int32_t>(page * page_size_);
    for (int32_t i = 0; i < page_size_; ++i) out.push_back(first + i);
  }
  return true;
}

void KvPool::free(std::span<const int32_t> slots) {
  for (size_t i = 0; i < slots.size(); i += static_cast<size_t>(page_size_)) {
    const int32_t slot = slots[i];
    const auto page = static_cast<int32_t>(slot / page_size_);
    SLUICE_CHECK(page > 0 && page < static_cast<int32_t>(in_use_.size()) && slot % page_size_ == 0,
                 "freeing slot {} of a pool of {} in pages of {}", slot, capacity(), page_size_);
    SLUICE_CHECK(in_use_[static_cast<size_t>(page)], "slot {} is freed twice", slot);
    in_use_[static_cast<size_t>(page)] = 0;
    free_.push_back(page);
  }
}

}  // namespace sluice::engine
