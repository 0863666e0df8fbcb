// What engines publish of their KV caches: batches of block events in MessagePack. The forms of
// SGLang and of older vLLM are arrays, that of newer vLLM are maps; both are read, and what a later version adds at an
// end or under a new key is passed over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sluice::protocol {

// A block as its engine names it: an integer as it is, a byte string (SHA-256 of vLLM) by a hash of it.
using KvBlockHash = uint64_t;

struct KvEvent {
  enum class Kind : uint8_t { kStored, kRemoved, kCleared };

  Kind kind = Kind::kCleared;
  std::vector<KvBlockHash> hashes;    // of what was stored, each the child of the one before it, or removed
  std::optional<KvBlockHash> parent;  // of the first one; none = it begins a prompt
  std::vector<int32_t> token_ids;     // of all stored blocks: hashes.size() * block_size
  int64_t block_size = 0;             // tokens
  std::string medium;                 // "GPU", "CPU_PINNED", ...; empty = not said
  std::optional<int64_t> group;       // of a hybrid cache: which of its groups
  std::string group_kind;             // "full_attention", "sliding_window", ...; empty = not said
  bool keyed = false;                 // its content depends on more than its tokens: LoRA, cache salt, images
};

struct KvEventBatch {
  double timestamp = 0;  // seconds since 1970
  std::vector<KvEvent> events;
  std::optional<int64_t> dp_rank;
  size_t unreadable = 0;  // events that were left out: of an unknown kind, or not of the form of theirs
};

inline constexpr size_t kMostKvPayload = 8 << 20;  // bytes

// kTooLarge, or kProtocol: no batch at all. An event that cannot be read does not keep the others from being read.
Result<KvEventBatch> decode_kv_events(std::string_view payload);

// In SGLang's form, with vLLM's places for groups after it where an event has one.
std::string encode_kv_events(const KvEventBatch& batch);

}  // namespace sluice::protocol
