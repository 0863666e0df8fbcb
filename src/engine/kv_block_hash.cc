#include "engine/kv_block_hash.h"

#include <openssl/sha.h>

#include <bit>
#include <cstring>
#include <vector>

namespace sluice::engine {

static_assert(std::endian::native == std::endian::little, "token ids are hashed in memory order");

KvDigest kv_block_digest(const KvDigest* before, std::span<const int32_t> tokens) {
  // One call over joined bytes: pages are short, and a context of its own would cost more than the hash.
  thread_local std::vector<uint8_t> bytes;
  const size_t head = before ? before->size() : 0;
  bytes.resize(head + tokens.size_bytes());
  if (before) std::memcpy(bytes.data(), before->data(), head);
  std::memcpy(bytes.data() + head, tokens.data(), tokens.size_bytes());
  KvDigest digest;
  SHA256(bytes.data(), bytes.size(), digest.data());
  return digest;
}

KvDigest kv_namespace_digest(std::string_view extra_key) {
  KvDigest digest;
  SHA256(reinterpret_cast<const uint8_t*>(extra_key.data()), extra_key.size(), digest.data());
  return digest;
}

protocol::KvBlockHash kv_block_hash(const KvDigest& digest) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value = value << 8 | digest[i];
  return value;
}

}  // namespace sluice::engine
