#include "net/timer.h"

#include <boost/asio/post.hpp>

#include "base/check.h"

namespace sluice::net {

void TimerQueue::fire(TimePoint now) {
  while (!heap_.empty() && heap_.front().at <= now) {
    Timer& timer = *heap_.front().timer;
    due_.push_back(std::move(timer.wait_));
    remove(timer);
  }
  auto due = std::move(due_);  // those who are told may wait anew
  for (auto& wait : due) {
    Wait& its = *wait;
    its.end(std::move(wait), {});
  }
  due.clear();
  due_ = std::move(due);  // its memory
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
  heap_.push_back({timer.at_, &timer});
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
  for (; at > 0 && entry.at < heap_[(at - 1) / 2].at; at = (at - 1) / 2) place(at, heap_[(at - 1) / 2]);
  for (;;) {
    size_t child = 2 * at + 1;
    if (child + 1 < heap_.size() && heap_[child + 1].at < heap_[child].at) ++child;
    if (child >= heap_.size() || entry.at <= heap_[child].at) break;
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
