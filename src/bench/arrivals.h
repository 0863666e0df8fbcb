// When requests are due.
#pragma once

#include <vector>

#include "base/clock.h"
#include "base/rng.h"

namespace sluice::bench {

// Times since the start, ascending; the first is 0. Gaps are exponential with mean 1/rate (a Poisson process); with a
// rate of infinity all are 0.
inline std::vector<Duration> arrival_times(size_t count, double rate, Rng& rng) {
  std::vector<Duration> times(count, Duration::zero());
  if (!std::isfinite(rate)) return times;
  double at = 0;
  for (size_t i = 1; i < count; ++i) {
    at += rng.exponential(1.0 / rate);
    times[i] = from_seconds(at);
  }
  return times;
}

}  // namespace sluice::bench
