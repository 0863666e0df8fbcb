#include "tokenizer/segment_cache.h"

#include <xxhash.h>

namespace sluice::tokenizer {

// With the nodes of list and map, and what the allocator adds to four blocks.
size_t SegmentCache::bytes_of(const Entry& entry) {
  return sizeof(Entry) + 160 + entry.text.capacity() + entry.ids.capacity() * sizeof(int32_t);
}

void SegmentCache::drop(Shard& shard, std::list<Entry>::iterator entry) {
  shard.bytes -= bytes_of(*entry);
  shard.by_hash.erase(entry->hash);
  shard.entries.erase(entry);
}

bool SegmentCache::find(std::string_view text, std::vector<int32_t>& ids) {
  const uint64_t hash = XXH3_64bits(text.data(), text.size());
  Shard& shard = shard_of(hash);
  const std::lock_guard lock(shard.mu);
  const auto found = shard.by_hash.find(hash);
  if (found == shard.by_hash.end() || found->second->text != text) return false;
  shard.entries.splice(shard.entries.begin(), shard.entries, found->second);
  ids.insert(ids.end(), found->second->ids.begin(), found->second->ids.end());
  return true;
}

void SegmentCache::put(std::string_view text, std::vector<int32_t> ids) {
  const uint64_t hash = XXH3_64bits(text.data(), text.size());
  Entry entry{hash, std::string(text), std::move(ids)};
  const size_t bytes = bytes_of(entry);
  if (bytes > shard_bytes_) return;
  Shard& shard = shard_of(hash);
  const std::lock_guard lock(shard.mu);
  if (const auto known = shard.by_hash.find(hash); known != shard.by_hash.end()) drop(shard, known->second);
  while (shard.bytes + bytes > shard_bytes_) drop(shard, std::prev(shard.entries.end()));
  shard.entries.push_front(std::move(entry));
  shard.by_hash.emplace(hash, shard.entries.begin());
  shard.bytes += bytes;
}

size_t SegmentCache::bytes() const {
  size_t out = 0;
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard.mu);
    out += shard.bytes;
  }
  return out;
}

}  // namespace sluice::tokenizer
