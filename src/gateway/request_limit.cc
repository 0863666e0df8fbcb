#include "gateway/request_limit.h"

#include <algorithm>

namespace sluice::gateway {

void RequestLimit::allow(int64_t most) {
  const std::lock_guard lock(mutex_);
  allowed_ = most;
  publish();
}

int64_t RequestLimit::allowed() const {
  const std::lock_guard lock(mutex_);
  return allowed_;
}

void RequestLimit::busy(TimePoint sent, TimePoint now, int64_t others) {
  const std::lock_guard lock(mutex_);
  seen_ = std::max(seen_, now);
  if (sent <= halved_) {
    if (!is_narrowed()) return;  // the window has grown and gone since
    base_ = window();
  } else {
    halved_ = seen_;
    target_ = std::max<int64_t>(others, 1);
    base_ = std::max<int64_t>(others / 2, 1);
  }
  answers_ = 0;
  last_busy_ = seen_;
  narrowed_.store(true, std::memory_order_relaxed);
  publish();
}

void RequestLimit::grow(TimePoint now, int64_t answers) {
  const std::lock_guard lock(mutex_);
  if (!is_narrowed()) return;
  seen_ = std::max(seen_, now);
  answers_ += answers;
  if (seen_ - last_busy_ >= kRegrowth) narrowed_.store(false, std::memory_order_relaxed);
  publish();
}

void RequestLimit::forget_busy() {
  const std::lock_guard lock(mutex_);
  narrowed_.store(false, std::memory_order_relaxed);
  publish();
}

int64_t RequestLimit::window() const {
  const double passed = std::clamp(seconds(seen_ - last_busy_) / seconds(kRegrowth), 0.0, 1.0);
  const int64_t missing = std::max<int64_t>(target_ - base_, 0);
  return base_ + answers_ + static_cast<int64_t>(passed * static_cast<double>(missing));
}

void RequestLimit::publish() {
  seat_.store(is_narrowed() ? std::min(allowed_, window()) : allowed_, std::memory_order_relaxed);
}

}  // namespace sluice::gateway
