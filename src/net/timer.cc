#include "net/timer.h"

#include <boost/asio/post.hpp>

#include "base/check.h"

namespace sluice::net {

void TimerQueue::fire(TimePoint now) {
  // One by one: who is told may take another one's wait back.
  const uint64_t last = added_;
  while (!heap_.empty() && heap_.front().at <= now && heap_.front().number <= last) {
    Timer& timer = *heap_.front().timer;
    remove(timer);
    auto wait = std::move(timer.wait_);
    Wait& its = *wait;
    its.end(std::move(wait), {});
  }
}

void TimerQueue::shutdown() {
  // What is dropped here may own further timers.
  while (!heap_.empty()) {
    Timer& timer = *heap_.back().timer;
    heap_.pop_back();
    const auto dropped = std::move(timer.wait_);
  }
}

void TimerQueue::add(Timer& timer) {
  heap_.push_back({timer.at_, ++added_, &timer});
  timer.place_ = heap_.size() - 1;
  settle(timer.place_);
}

void TimerQueue::remove(Timer& timer) {
  const size_t at = timer.place_;
  const Entry last = heap_.back();
  heap_.pop_back();
  if (at == heap_.size()) return;
  place(at, last);
  settle(at);
}

void TimerQueue::place(size_t at, Entry entry) {
  heap_[at] = entry;
  entry.timer->place_ = at;
}

// Moves what stands there up or down to where it belongs.
void TimerQueue::settle(size_t at) {
  const Entry entry = heap_[at];
  for (; at > 0 && entry < heap_[(at - 1) / 2]; at = (at - 1) / 2) place(at, heap_[(at - 1) / 2]);
  for (;;) {
    size_t child = 2 * at + 1;
    if (child + 1 < heap_.size() && heap_[child + 1] < heap_[child]) ++child;
    if (child >= heap_.size() || entry < heap_[child]) break;
    place(at, heap_[child]);
    at = child;
  }
  place(at, entry);
}

void Timer::begin(std::unique_ptr<TimerQueue::Wait> wait) {
  SLUICE_CHECK(wait_ == nullptr, "two wait for the same timer");
  wait_ = std::move(wait);
  queue_.add(*this);
}

void Timer::cancel() {
  if (wait_ == nullptr) return;
  queue_.remove(*this);
  asio::post(executor_, [wait = std::move(wait_)]() mutable {
    TimerQueue::Wait& its = *wait;
    its.end(std::move(wait), asio::error::operation_aborted);
  });
}

}  // namespace sluice::net
