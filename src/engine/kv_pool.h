// Hands out the slots of the KV cache, one per token. Slot 0 is a dummy that padded rows write to and is never handed
// out. The pool knows slots only; what they hold is the runner's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sluice::engine {

// Used by one thread.
class KvPool {
 public:
  // `slots` includes the dummy; at least 1.
  explicit KvPool(int64_t slots);

  // Tokens that the pool can hold.
  int64_t capacity() const { return static_cast<int64_t>(in_use_.size()) - 1; }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }

  // Appends `n` slots to `out`, or changes nothing and returns false. O(n). The slot freed last goes out first: its
  // memory is the likeliest to be in a cache.
  [[nodiscard]] bool alloc(int64_t n, std::vector<int32_t>& out);
  // Giving back what is not handed out is a broken invariant.
  void free(int32_t slot);
  void free(std::span<const int32_t> slots);

 private:
  std::vector<int32_t> free_;    // a stack
  std::vector<uint8_t> in_use_;  // by slot
};

}  // namespace sluice::engine
