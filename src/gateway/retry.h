// When a failed attempt is repeated, and after which pause (gateway-reference.md 1.1, 6.3).
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "base/rng.h"
#include "gateway/options.h"

namespace sluice::gateway {

struct RetryRules {
  int64_t attempts = 5;  // in all
  Duration initial = std::chrono::milliseconds(50);
  Duration longest = std::chrono::seconds(30);
  double multiplier = 1.5;
  double jitter = 0.2;

  static RetryRules from(const GatewayOptions& options);
  // The pause before retry `retry` (0 = the first). A worker's Retry-After lengthens it, up to the longest pause.
  Duration pause(int64_t retry, std::optional<Duration> retry_after, Rng& rng) const;
};

// Retries may make up a tenth of live traffic: a fleet that fails as a whole is not asked five times as much. Every
// request earns a tenth of a retry; a floor lets quiet gateways retry. Any thread.
class RetryBudget {
 public:
  void earn() {
    if (tenths_.load(std::memory_order_relaxed) < kMost) tenths_.fetch_add(1, std::memory_order_relaxed);
  }
  // Takes one retry; false if there is none left.
  bool spend(TimePoint now);

 private:
  static constexpr int64_t kMost = 1000;          // a hundred retries
  static constexpr int64_t kFloorPerSecond = 10;  // retries per second, whatever the traffic

  std::atomic<int64_t> tenths_{0};
  std::atomic<int64_t> second_{0};
  std::atomic<int64_t> used_in_second_{0};
};

}  // namespace sluice::gateway
