// Which workers a routing key has: the memory of the manual policy and of --routing-key-override.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <mutex>
#include <string_view>
#include <unordered_map>

#include "base/clock.h"

namespace sluice::gateway {

// Any thread. A key is kept as its 128-bit hash: the memory of an entry does not depend on what a client sends.
class RoutingKeys {
 public:
  static constexpr size_t kMaxKeys = size_t{1} << 20;  // beyond it the key that was unused for longest goes
  static constexpr size_t kWorkersPerKey = 2;

  explicit RoutingKeys(Duration max_idle, size_t max_keys = kMaxKeys) : max_idle_(max_idle), max_keys_(max_keys) {}

  // The first of the key's workers, latest assignment last, that `may_use` accepts; kNone if there is none, kNew if the
  // key has none at all. Counts as a use. `now` does not go back.
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint32_t kNew = UINT32_MAX - 1;
  template <class MayUse>
  uint32_t find(std::string_view key, TimePoint now, MayUse&& may_use) {
    const Hash hash = hash_of(key);
    std::lock_guard lock(mutex_);
    expire(now);
    Entry* entry = use(hash, now);
    if (entry == nullptr) return kNew;
    for (size_t i = 0; i < entry->count; ++i) {
      if (may_use(entry->workers[i])) return entry->workers[i];
    }
    return kNone;
  }
  // The key has this worker too; of more than kWorkersPerKey the first one goes.
  void assign(std::string_view key, uint32_t worker, TimePoint now);

  // Keys whose latest assignment is that worker.
  int64_t keys_of(uint32_t worker) const;
  size_t size() const;

 private:
  struct Hash {
    uint64_t low = 0, high = 0;
    bool operator==(const Hash&) const = default;
  };
  struct HashOfHash {
    size_t operator()(const Hash& hash) const { return hash.low; }
  };
  struct Entry {
    Hash key;
    TimePoint used;
    std::array<uint32_t, kWorkersPerKey> workers{};
    size_t count = 0;
  };
  using Entries = std::list<Entry>;

  static Hash hash_of(std::string_view key);
  // Under the lock, all of them.
  Entry* use(const Hash& hash, TimePoint now);
  void expire(TimePoint now);
  void drop_oldest();
  void count(uint32_t worker, int64_t change);

  const Duration max_idle_;
  const size_t max_keys_;
  mutable std::mutex mutex_;  // guards what follows
  Entries entries_;           // least recently used first
  std::unordered_map<Hash, Entries::iterator, HashOfHash> index_;
  std::unordered_map<uint32_t, int64_t> keys_;  // by worker
};

}  // namespace sluice::gateway
