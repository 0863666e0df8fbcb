#include "gateway/retry.h"

#include <algorithm>
#include <cmath>

namespace sluice::gateway {

RetryRules RetryRules::from(const GatewayOptions& options) {
  return {.attempts = options.disable_retries ? 1 : options.retry_max_retries,
          .initial = std::chrono::milliseconds(options.retry_initial_backoff_ms),
          .longest = std::chrono::milliseconds(options.retry_max_backoff_ms),
          .multiplier = options.retry_backoff_multiplier,
          .jitter = options.retry_jitter_factor};
}

Duration RetryRules::pause(int64_t retry, std::optional<Duration> retry_after, Rng& rng) const {
  const double most = seconds(longest);
  const double base = std::min(most, seconds(initial) * std::pow(multiplier, static_cast<double>(retry)));
  const double varied = base * (1 + jitter * (2 * rng.uniform() - 1));
  return std::max(from_seconds(varied), std::min(retry_after.value_or(Duration{0}), longest));
}

bool RetryBudget::spend(TimePoint now) {
  const int64_t second = std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
  if (second_.exchange(second, std::memory_order_relaxed) != second) {
    used_in_second_.store(0, std::memory_order_relaxed);
  }
  if (used_in_second_.fetch_add(1, std::memory_order_relaxed) < kFloorPerSecond) return true;
  int64_t left = tenths_.load(std::memory_order_relaxed);
  while (left >= 10) {
    if (tenths_.compare_exchange_weak(left, left - 10, std::memory_order_relaxed)) return true;
  }
  return false;
}

}  // namespace sluice::gateway
