#include "routing/cache_belief.h"

#include <algorithm>
#include <cmath>

namespace sluice::routing {
namespace {

constexpr double kFollow = 0.1;            // share_ is a moving average over some ten answers
constexpr double kWorthTelling = 0.1;      // a smaller match says nothing about the cache
constexpr double kMiss = 0.5, kHit = 0.9;  // of what was predicted
// The limit changes at most once for so much new text, as a part of the limit: down for a miss, else up a little. So
// the misses of one moment are one observation, as when a batch begins alike and nobody has computed the beginning yet;
// and in the time in which a cache is renewed once the limit goes up by a twentieth.
constexpr double kPerChange = 0.02;
constexpr double kDown = 0.95, kUp = 1.001;
constexpr double kMostLimit = 1e18;       // bytes
constexpr double kLeastLimit = 16 << 10;  // bytes
// How much text a token stands for is a mean over some hundred prompts. Pictures are tokens without text.
constexpr float kRemember = 0.99F;
constexpr float kUsualPerToken = 4, kLeastPerToken = 1, kMostPerToken = 16;

}  // namespace

void CacheBelief::sent(size_t new_bytes) {
  std::lock_guard lock(mutex_);
  sent_ += static_cast<double>(new_bytes);
  look_for_room();
}

void CacheBelief::unsent(size_t new_bytes) {
  std::lock_guard lock(mutex_);
  // A restart may have begun the count anew since.
  sent_ = std::max(changed_at_, sent_ - static_cast<double>(new_bytes));
  look_for_room();
}

void CacheBelief::reported(double predicted, double cached) {
  if (cached > 0) confirmed_.store(true, std::memory_order_relaxed);
  // Engines that do not report say zero, or nothing.
  if (!confirmed() || predicted < kWorthTelling) return;
  const double kept = std::min(cached / predicted, 1.0);
  std::lock_guard lock(mutex_);
  share_.store(static_cast<float>(share() + kFollow * (kept - share())), std::memory_order_relaxed);
  const bool limited = limit_bytes() != kNoLimit;
  const auto limit = static_cast<double>(limit_bytes());
  if (limited && sent_ - changed_at_ < kPerChange * limit) return;
  if (kept < kMiss) {
    // Who has said how much it holds and was sent less has not dropped it for want of room: of two that begin alike
    // and come at once neither finds the other's beginning.
    if (std::isfinite(capacity_) && sent_ < limit) return;
    // It never held more than it was sent.
    set_limit(std::min(limit, sent_) * kDown);
  } else if (kept >= kHit && limited) {
    set_limit(limit * kUp);
  }
}

void CacheBelief::set_limit(double bytes) {
  limit_.store(static_cast<size_t>(std::clamp(bytes, std::min(kLeastLimit, most()), most())),
               std::memory_order_relaxed);
  changed_at_ = sent_;
  look_for_room();
}

void CacheBelief::look_for_room() {
  const size_t limit = limit_bytes();
  has_room_.store(limit != kNoLimit && sent_ < static_cast<double>(limit), std::memory_order_relaxed);
}

double CacheBelief::most() const {
  const float per_token = tokens_ > 0 ? std::clamp(bytes_ / tokens_, kLeastPerToken, kMostPerToken) : kUsualPerToken;
  return std::min(static_cast<double>(capacity_) * per_token, kMostLimit);
}

void CacheBelief::capacity(size_t tokens) {
  std::lock_guard lock(mutex_);
  capacity_ = static_cast<float>(tokens);
  if (most() < static_cast<double>(limit_bytes())) set_limit(most());
}

void CacheBelief::tokenized(size_t bytes, size_t tokens) {
  if (bytes == 0 || tokens == 0) return;
  std::lock_guard lock(mutex_);
  // A limit that no miss has lowered is what the engine says, in other words.
  const bool as_reported = static_cast<double>(limit_bytes()) >= std::floor(most());
  bytes_ = bytes_ * kRemember + static_cast<float>(bytes);
  tokens_ = tokens_ * kRemember + static_cast<float>(tokens);
  if (!std::isfinite(capacity_)) return;
  if (as_reported || most() < static_cast<double>(limit_bytes())) {
    limit_.store(static_cast<size_t>(most()), std::memory_order_relaxed);
    look_for_room();
  }
}

void CacheBelief::forget_reports() {
  std::lock_guard lock(mutex_);
  share_.store(1, std::memory_order_relaxed);
}

void CacheBelief::restart() {
  std::lock_guard lock(mutex_);
  share_.store(1, std::memory_order_relaxed);
  sent_ = changed_at_ = 0;
  look_for_room();
}

}  // namespace sluice::routing
