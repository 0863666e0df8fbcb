// How far the prefix index may be believed about one worker. The index remembers what was sent there; the worker's
// cache is finite, is shared with others, and may be emptied behind our back. What answers report of it corrects both:
// the share of a predicted match that counts, and how many bytes of text the worker can hold at most, which bounds its
// part of the index so that what it has dropped is dropped there too.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>

namespace sluice::routing {

// Any thread; readers take no lock.
class CacheBelief {
 public:
  static constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

  // Of a predicted match, 0 to 1.
  double share() const { return share_.load(std::memory_order_relaxed); }
  // Of what it can hold, not as much has been sent yet since its cache was empty: what comes pushes nothing out. False
  // where nobody knows how much it can hold.
  bool has_room() const { return has_room_.load(std::memory_order_relaxed); }
  // Bytes of prompt text that it holds at most.
  size_t limit_bytes() const { return limit_.load(std::memory_order_relaxed); }
  // False while no answer has reported a cached token: predictions are then all there is.
  bool confirmed() const { return confirmed_.load(std::memory_order_relaxed); }

  // The worker is known to report, so that answers without a cached token count from the first.
  void confirm() { confirmed_.store(true, std::memory_order_relaxed); }
  // A prompt was sent of which so many bytes are new to the worker.
  void sent(size_t new_bytes);
  // It was not computed there after all.
  void unsent(size_t new_bytes);
  // Its answer: `predicted` and `cached` are shares of the prompt.
  void reported(double predicted, double cached);
  // The engine says how much it holds: the limit is never more than the text of so many tokens.
  void capacity(size_t tokens);
  // Its answer: a prompt of so much text was so many tokens.
  void tokenized(size_t bytes, size_t tokens);
  // Predictions are of another kind from now on: what was reported of the ones before says nothing of them.
  void forget_reports();
  // A new process, or an emptied cache: what was predicted before counts for nothing, the size stays.
  void restart();

 private:
  void set_limit(double bytes);
  void look_for_room();
  double most() const;  // bytes

  std::atomic<float> share_{1};
  std::atomic<bool> has_room_{false};
  std::atomic<size_t> limit_{kNoLimit};
  std::atomic<bool> confirmed_{false};

  // mutex_ guards what follows, and this: tokens that the engine says it holds
  float capacity_ = std::numeric_limits<float>::infinity();
  std::mutex mutex_;
  double sent_ = 0;               // bytes, since the cache was empty
  double changed_at_ = 0;         // sent_ when the limit was last changed
  float bytes_ = 0, tokens_ = 0;  // of prompts that were answered, older ones less
};

}  // namespace sluice::routing
