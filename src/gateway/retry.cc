#include "gateway/retry.h"

#include <algorithm>
#include <cmath>

#include "gateway/worker_rules.h"

namespace sluice::gateway {
namespace {

constexpr int64_t kRequestsPerRetry = 10;
constexpr int kCountBits = 32;
constexpr uint64_t kCountMask = (uint64_t{1} << kCountBits) - 1;

int64_t second_of(TimePoint time) {
  return std::chrono::duration_cast<std::chrono::seconds>(time.time_since_epoch()).count();
}

}  // namespace

RetryRules RetryRules::from(const GatewayOptions& options) { return WorkerRules::from(options).retry(); }

Duration RetryRules::pause(int64_t retry, std::optional<Duration> retry_after, Rng& rng) const {
  const double most = seconds(longest);
  // Of no pause nothing grows: times infinity it would be no number.
  const double grown =
      initial <= Duration::zero() ? 0 : seconds(initial) * std::pow(multiplier, static_cast<double>(retry));
  const double base = std::min(most, grown);
  const double varied = base * (1 + jitter * (2 * rng.uniform() - 1));
  return std::max(from_seconds(varied), std::min(retry_after.value_or(Duration{0}), longest));
}

void RetryBudget::earn(TimePoint now) {
  const auto second = static_cast<uint64_t>(second_of(now));
  std::atomic<uint64_t>& slot = requests_[second % kWindow];
  uint64_t seen = slot.load(std::memory_order_relaxed);
  while (seen >> kCountBits != second) {
    if (slot.compare_exchange_weak(seen, (second << kCountBits) + 1, std::memory_order_relaxed)) return;
  }
  slot.fetch_add(1, std::memory_order_relaxed);
}

int64_t RetryBudget::earned_since(int64_t second) const {
  uint64_t sum = 0;
  for (const auto& slot : requests_) {
    const uint64_t seen = slot.load(std::memory_order_relaxed);
    if (seen >> kCountBits >= static_cast<uint64_t>(second)) sum += seen & kCountMask;
  }
  return static_cast<int64_t>(sum);
}

bool RetryBudget::spend(TimePoint now) {
  const int64_t second = second_of(now);
  const int64_t first = std::max<int64_t>(second - kWindow + 1, 0);
  const std::lock_guard lock(mutex_);
  int64_t spent = 0;
  for (const Retries& retries : retries_) {
    if (retries.second >= first) spent += retries.count;
  }
  if (spent >= std::max(kFloor, earned_since(first) / kRequestsPerRetry)) return false;
  Retries& here = retries_[static_cast<size_t>(second % kWindow)];
  if (here.second != second) here = {.second = second};
  ++here.count;
  return true;
}

}  // namespace sluice::gateway
