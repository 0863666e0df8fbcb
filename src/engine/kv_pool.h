// Hands out the slots of the KV cache, one per token, in pages of a fixed number of slots that lie side by side. Page 0
// is a dummy that padded rows write to and is never handed out. The pool knows slots only; what they hold is the
// runner's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sluice::engine {

// Used by one thread. All counts are of tokens.
class KvPool {
 public:
  // `slots` includes the dummy page, and is cut to whole pages; at least one.
  explicit KvPool(int64_t slots, int64_t page_size = 1);

  int64_t page_size() const { return page_size_; }
  // Tokens that the pool can hold.
  int64_t capacity() const { return (static_cast<int64_t>(in_use_.size()) - 1) * page_size_; }
  int64_t available() const { return static_cast<int64_t>(free_.size()) * page_size_; }
  // Handed out and not given back.
  bool in_use(int32_t slot) const { return in_use_[static_cast<size_t>(slot / page_size_)] != 0; }

  // `tokens` rounded to whole pages.
  int64_t floor(int64_t tokens) const { return tokens - tokens % page_size_; }
  int64_t ceil(int64_t tokens) const { return floor(tokens + page_size_ - 1); }

  // Appends `n` slots, whole pages, to `out`, or changes nothing and returns false. O(n). The page freed last goes out
  // first: its memory is the likeliest to be in a cache.
  [[nodiscard]] bool alloc(int64_t n, std::vector<int32_t>& out);
  // Slots of whole pages, side by side; of the last page only the first slots may be named. Giving back what is not
  // handed out is a broken invariant.
  void free(std::span<const int32_t> slots);

 private:
  const int64_t page_size_;
  std::vector<int32_t> free_;    // pages, a stack
  std::vector<uint8_t> in_use_;  // by page
};

}  // namespace sluice::engine
