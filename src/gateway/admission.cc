#include "gateway/admission.h"

#include <algorithm>
#include <cmath>

namespace sluice::gateway {

bool Admission::try_enter() {
  if (slots_ < 0) {
    in_flight_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }
  std::lock_guard lock(mutex_);
  // A slot that is given back goes to the head of the queue: a free one means that nobody waits.
  if (in_flight() >= slots_) return false;
  in_flight_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

Admission::Entry Admission::enter(const std::shared_ptr<Waiter>& waiter) {
  if (slots_ < 0 && try_enter()) return Entry::kAdmitted;
  std::lock_guard lock(mutex_);
  if (in_flight() < slots_) {
    in_flight_.fetch_add(1, std::memory_order_relaxed);
    return Entry::kAdmitted;
  }
  if (static_cast<int64_t>(queue_.size()) >= queue_size_) return Entry::kFull;
  queue_.push_back(waiter);
  return Entry::kQueued;
}

bool Admission::leave(const std::shared_ptr<Waiter>& waiter) {
  std::lock_guard lock(mutex_);
  if (waiter->granted) return true;
  std::erase(queue_, waiter);
  return false;
}

void Admission::release() {
  if (slots_ < 0) {
    in_flight_.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  std::shared_ptr<Waiter> next;
  {
    std::lock_guard lock(mutex_);
    released_.push_back(clock_.now());
    if (released_.size() > 32) released_.pop_front();
    if (queue_.empty()) {
      in_flight_.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
    next = std::move(queue_.front());
    queue_.pop_front();
    next->granted = true;
  }
  next->wake();
}

size_t Admission::queued() const {
  std::lock_guard lock(mutex_);
  return queue_.size();
}

int64_t Admission::retry_after_seconds() const {
  const TimePoint now = clock_.now();
  std::lock_guard lock(mutex_);
  if (released_.size() < 2) return 1;
  const double rate = static_cast<double>(released_.size()) / std::max(1e-3, seconds(now - released_.front()));
  const double wait = static_cast<double>(queue_.size() + 1) / rate;
  return static_cast<int64_t>(std::clamp(std::ceil(wait), 1.0, 60.0));
}

}  // namespace sluice::gateway
