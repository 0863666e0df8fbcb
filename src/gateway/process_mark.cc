#include "gateway/process_mark.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace sluice::gateway {

bool ProcessMark::changes_to(std::string_view name, TimePoint now) {
  const uint64_t mark = std::hash<std::string_view>()(name) | 1;
  if (latest_.load(std::memory_order_relaxed) == mark) return false;
  std::lock_guard lock(mutex_);
  latest_.store(mark, std::memory_order_relaxed);
  if (now - came_back_at_ > kForgotten) came_back_ = 0;
  if (std::ranges::find(seen_, mark) != seen_.end()) {
    ++came_back_;
    came_back_at_ = now;
    return false;
  }
  seen_[next_] = mark;
  next_ = (next_ + 1) % seen_.size();
  if (std::exchange(expects_new_, false) || came_back_ >= kOfSeveral) return false;
  came_back_ /= 2;  // late answers of the one before
  return true;
}

void ProcessMark::expect_new() {
  std::lock_guard lock(mutex_);
  expects_new_ = true;
  came_back_ = 0;
}

}  // namespace sluice::gateway
