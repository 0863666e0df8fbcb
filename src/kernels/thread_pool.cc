#include "kernels/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"

extern "C" void omp_set_num_threads(int);

namespace sluice::kernels {
namespace {

constexpr std::chrono::microseconds kSpin{50};

// Waits until `value` differs from `old`: spinning first, then asleep.
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  using Clock = std::chrono::steady_clock;
  for (Clock::time_point now{}, deadline = Clock::time_point::max(); now < deadline;) {
    for (int i = 0; i < 64; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      _mm_pause();
    }
    // Looked at late: most waits are short.
    now = Clock::now();
    deadline = std::min(deadline, now + kSpin);
  }
  value.wait(old, std::memory_order_acquire);
}

constexpr uint64_t packed(int64_t begin, int64_t end) {
  return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
}

}  // namespace

ThreadPool::ThreadPool(int threads) : runs_(static_cast<size_t>(threads)) {
  stay_one_thread();
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, int64_t grain, Call call, const void* body) {
  call_ = call;
  body_ = body;
  count_ = count;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  if (grain > 0) {
    SLUICE_CHECK(count <= 0xffffffff, "{} pieces for the threads", count);
    const auto threads = static_cast<int64_t>(runs_.size());
    for (int64_t i = 0; i < threads; ++i) {
      const uint64_t own = packed(count * i / threads, count * (i + 1) / threads);
      runs_[static_cast<size_t>(i)].left.store(own, std::memory_order_relaxed);
    }
  }
  inside_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  try {
    work(0);
  } catch (...) {
    // What `body` refers to lives only until this is left.
    drop_rest();
    close();
    throw;
  }
  close();
}

void ThreadPool::drop_rest() {
  next_.store(count_, std::memory_order_relaxed);
  for (Run& run : runs_) run.left.store(0, std::memory_order_relaxed);
}

void ThreadPool::close() {
  uint32_t left = inside_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  for (; left != 0; left = inside_.load(std::memory_order_acquire)) await_change(inside_, left);
}

ThreadPool::Range ThreadPool::take(int thread) {
  if (grain_ == 0) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    return {i, i < count_ ? i + 1 : i};
  }
  const size_t own = static_cast<size_t>(thread), threads = runs_.size();
  for (size_t i = 0; i < threads; ++i) {
    auto& run = runs_[(own + i) % threads].left;
    uint64_t left = run.load(std::memory_order_relaxed);
    for (;;) {
      const auto begin = static_cast<int64_t>(left >> 32), end = static_cast<int64_t>(left & 0xffffffff);
      if (begin >= end) break;
      // Of one's own from the front, of others' from the end.
      const int64_t middle =
          i == 0 ? std::min(end, (begin / grain_ + 1) * grain_) : std::max(begin, (end - 1) / grain_ * grain_);
      // Nothing is published by this: what a job needs was written before it was opened.
      const uint64_t rest = i == 0 ? packed(middle, end) : packed(begin, middle);
      if (!run.compare_exchange_weak(left, rest, std::memory_order_relaxed)) continue;
      return i == 0 ? Range{begin, middle} : Range{middle, end};
    }
  }
  return {};
}

void ThreadPool::work(int thread) {
  for (;;) {
    const Range range = take(thread);
    if (range.begin >= range.end) return;
    call_(body_, range.begin, range.end, thread);
    beat(thread);
  }
}

void ThreadPool::say_one_thread() { omp_set_num_threads(1); }

bool ThreadPool::enter() {
  uint32_t inside = inside_.load(std::memory_order_relaxed);
  while ((inside & kOpen) != 0) {
    if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire, std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

void ThreadPool::serve(int thread) {
  stay_one_thread();
  uint32_t seen = 0;
  for (;;) {
    await_change(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    if (!enter()) continue;
    work(thread);
    if (inside_.fetch_sub(1, std::memory_order_acq_rel) == 1) inside_.notify_one();
  }
}

}  // namespace sluice::kernels
