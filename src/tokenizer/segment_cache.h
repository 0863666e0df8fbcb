// Pieces of text that were tokenized lately, with their ids.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace sluice::tokenizer {

// Any thread. Of those that fit `max_bytes`, overhead included, the latest used are kept.
class SegmentCache {
 public:
  explicit SegmentCache(size_t max_bytes) : shard_bytes_(max_bytes / kShards) {}

  // Appends the ids of `text` to `ids` if they are known.
  bool find(std::string_view text, std::vector<int32_t>& ids);
  void put(std::string_view text, std::vector<int32_t> ids);
  size_t bytes() const;

 private:
  struct Entry {
    uint64_t hash;
    std::string text;
    std::vector<int32_t> ids;
  };
  struct Shard {
    mutable std::mutex mu;
    std::list<Entry> entries;                                          // guarded by mu; latest used first
    std::unordered_map<uint64_t, std::list<Entry>::iterator> by_hash;  // guarded by mu
    size_t bytes = 0;                                                  // guarded by mu
  };
  static constexpr size_t kShards = 16;

  static size_t bytes_of(const Entry& entry);
  static void drop(Shard& shard, std::list<Entry>::iterator entry);
  Shard& shard_of(uint64_t hash) { return shards_[hash % kShards]; }

  const size_t shard_bytes_;
  std::array<Shard, kShards> shards_;
};

}  // namespace sluice::tokenizer
