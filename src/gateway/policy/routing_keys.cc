#include "gateway/policy/routing_keys.h"

#include <xxhash.h>

namespace sluice::gateway {

RoutingKeys::Hash RoutingKeys::hash_of(std::string_view key) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  return {hash.low64, hash.high64};
}

RoutingKeys::Entry* RoutingKeys::use(const Hash& hash, TimePoint now) {
  const auto at = index_.find(hash);
  if (at == index_.end()) return nullptr;
  entries_.splice(entries_.end(), entries_, at->second);
  at->second->used = now;
  return &*at->second;
}

void RoutingKeys::assign(std::string_view key, uint32_t worker, TimePoint now) {
  const Hash hash = hash_of(key);
  std::lock_guard lock(mutex_);
  expire(now);
  Entry* entry = use(hash, now);
  if (entry == nullptr) {
    if (entries_.size() >= max_keys_) drop_oldest();
    entry = &entries_.emplace_back(Entry{.key = hash, .used = now});
    index_[hash] = std::prev(entries_.end());
  } else {
    count(entry->workers[entry->count - 1], -1);
  }
  if (entry->count == kWorkersPerKey) {
    std::ranges::move(entry->workers.begin() + 1, entry->workers.end(), entry->workers.begin());
    --entry->count;
  }
  entry->workers[entry->count++] = worker;
  count(worker, +1);
}

void RoutingKeys::expire(TimePoint now) {
  while (!entries_.empty() && now - entries_.front().used > max_idle_) drop_oldest();
}

void RoutingKeys::drop_oldest() {
  const Entry& oldest = entries_.front();
  count(oldest.workers[oldest.count - 1], -1);
  index_.erase(oldest.key);
  entries_.pop_front();
}

void RoutingKeys::count(uint32_t worker, int64_t change) {
  const auto at = keys_.try_emplace(worker).first;
  at->second += change;
  if (at->second == 0) keys_.erase(at);
}

int64_t RoutingKeys::keys_of(uint32_t worker) const {
  std::lock_guard lock(mutex_);
  const auto at = keys_.find(worker);
  return at == keys_.end() ? 0 : at->second;
}

size_t RoutingKeys::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace sluice::gateway
