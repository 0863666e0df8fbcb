// When a failed attempt is repeated, and after which pause.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
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

// Retries may make up a tenth of live traffic: a fleet that fails as a whole is not asked five times as much. A floor
// lets quiet gateways retry. Any thread.
class RetryBudget {
 public:
  // Of the seconds that have begun, that of the call among them, so many count.
  static constexpr int64_t kWindow = 10;
  // Retries within a window, whatever the traffic: what counts below ten requests per second.
  static constexpr int64_t kFloor = 10;

  // A request has come.
  void earn(TimePoint now);
  // Takes one retry; false if the window has had its share.
  bool spend(TimePoint now);

 private:
  int64_t earned_since(int64_t second) const;

  // Requests by second: its number above, how many below.
  std::array<std::atomic<uint64_t>, kWindow> requests_{};
  std::mutex mutex_;  // guards what follows
  struct Retries {
    int64_t second = -1;
    int64_t count = 0;
  };
  std::array<Retries, kWindow> retries_{};
};

}  // namespace sluice::gateway
