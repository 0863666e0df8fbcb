// Names of KV blocks in events: SHA-256 over the digest of the block before it, then each token
// id as four little-endian bytes.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "protocol/kv_events.h"

namespace sluice::engine {

using KvDigest = std::array<uint8_t, 32>;

// `before`: of the block before it; null for the first one.
KvDigest kv_block_digest(const KvDigest* before, std::span<const int32_t> tokens);
// What stands before the first block of a namespace, so that equal tokens of two namespaces have two names.
KvDigest kv_namespace_digest(std::string_view extra_key);
// The first 64 bits, the most significant first.
protocol::KvBlockHash kv_block_hash(const KvDigest& digest);

}  // namespace sluice::engine
