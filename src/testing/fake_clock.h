// A clock that stands still until a test moves it.
#pragma once

#include <atomic>

#include "base/clock.h"

namespace sluice::testing {

// Any thread.
class FakeClock final : public Clock {
 public:
  TimePoint now() const override { return TimePoint(Duration(nanos_.load(std::memory_order_relaxed))); }
  int64_t unix_nanos() const override { return 1'700'000'000'000'000'000 + nanos_.load(std::memory_order_relaxed); }

  void advance(Duration by) { nanos_.fetch_add(by.count(), std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> nanos_{1'000'000'000};
};

}  // namespace sluice::testing
