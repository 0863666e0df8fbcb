// Time as a dependency. Whoever waits, ages or measures takes a Clock, so that tests advance a FakeClock
// (testing/fake_clock.h) by hours in microseconds.
#pragma once

#include <chrono>
#include <cstdint>

namespace sluice {

using Duration = std::chrono::nanoseconds;
// A point on the monotonic clock. Only differences mean anything.
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

// Any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint now() const = 0;
  // Nanoseconds since 1970, for timestamps that people and other programs read; never for time-outs.
  virtual int64_t unix_nanos() const = 0;
};

// The machine's clocks. The reference lives for ever.
const Clock& real_clock();

inline double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }
inline Duration from_seconds(double s) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(s));
}

}  // namespace sluice
